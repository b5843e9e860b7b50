//! JSON (RFC 8259) into a tree with places, which serde_json does not give. Lists, objects and blanks are read here,
//! numbers and strings are handed to serde_json, so that what is JSON here is JSON there.
//!
//! Stricter than the RFC: a key twice in one object is an error, and nesting ends at [`DEPTH_MAX`].

use std::ops::Range;

use super::tree::{Entry, Node, SyntaxError, Value};

/// Deeper nesting is refused before the stack is: serde_json's own limit.
const DEPTH_MAX: usize = 127;

/// Parses a text that is one JSON value.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut reader = Reader { text, at: 0, open: Vec::new() };
    let node = reader.value()?;
    reader.blanks();
    if reader.at < text.len() { Err(reader.wrong("the end of the file")) } else { Ok(node) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Where the lists and objects begin that the reader is inside of.
    open: Vec<usize>,
}

impl Reader<'_> {
    fn value(&mut self) -> Result<Node, SyntaxError> {
        self.blanks();
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => self.nested(Self::object)?,
            Some(b'[') => self.nested(Self::list)?,
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { span: start..self.at, value })
    }

    /// One level down, from the opening bracket to the closing one.
    fn nested(&mut self, inside: fn(&mut Self) -> Result<Value, SyntaxError>) -> Result<Value, SyntaxError> {
        if self.open.len() == DEPTH_MAX {
            return Err(self.error(self.at..self.at + 1, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.open.push(self.at);
        self.at += 1;
        let value = inside(self)?;
        self.open.pop();
        Ok(value)
    }

    fn object(&mut self) -> Result<Value, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        if self.skip(b'}') {
            return Ok(Value::Table(entries));
        }
        loop {
            entries.push(self.entry(&entries)?);
            if self.skip(b'}') {
                return Ok(Value::Table(entries));
            }
            self.expect(b',', "`,` or `}`")?;
        }
    }

    fn entry(&mut self, before: &[Entry]) -> Result<Entry, SyntaxError> {
        self.blanks();
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a key in quotes"));
        }
        let key = self.string()?;
        let key_span = start..self.at;
        if before.iter().any(|e| e.key == key) {
            return Err(self.error(key_span, format!("the key `{key}` stands twice in one object")));
        }
        self.expect(b':', "`:`")?;
        Ok(Entry { key, key_span, node: self.value()? })
    }

    fn list(&mut self) -> Result<Value, SyntaxError> {
        let mut nodes = Vec::new();
        if self.skip(b']') {
            return Ok(Value::List(nodes));
        }
        loop {
            nodes.push(self.value()?);
            if self.skip(b']') {
                return Ok(Value::List(nodes));
            }
            self.expect(b',', "`,` or `]`")?;
        }
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        let mut escaped = false;
        let closing = self.text.as_bytes()[start + 1..].iter().position(|byte| {
            let closes = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            closes
        });
        let Some(length) = closing else {
            return Err(self.error(start..self.text.len(), "the text has no closing quote".into()));
        };
        self.at = start + length + 2;
        let bad = |_| self.error(start..self.at, "not a JSON string".into());
        serde_json::from_str(&self.text[start..self.at]).map_err(bad)
    }

    fn number(&mut self) -> Result<Value, SyntaxError> {
        let start = self.at;
        let numeric = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        self.at += self.text.as_bytes()[start..].iter().take_while(|byte| numeric(byte)).count();
        let number: serde_json::Number = serde_json::from_str(&self.text[start..self.at])
            .map_err(|_| self.error(start..self.at, "not a JSON number".into()))?;
        Ok(match (number.as_u64(), number.as_i64()) {
            (Some(integer), _) => Value::Integer(integer.into()),
            (None, Some(integer)) => Value::Integer(integer.into()),
            (None, None) => {
                Value::Float(number.as_f64().expect("a JSON number that is no integer is a float"))
            }
        })
    }

    fn word(&mut self) -> Result<Value, SyntaxError> {
        const WORDS: [(&str, Value); 3] =
            [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))];
        let rest = &self.text[self.at..];
        let Some((word, value)) = WORDS.into_iter().find(|(word, _)| rest.starts_with(word)) else {
            return Err(self.wrong("a value"));
        };
        self.at += word.len();
        Ok(value)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Goes past `byte`, if that is what comes next.
    fn skip(&mut self, byte: u8) -> bool {
        self.blanks();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8, named: &str) -> Result<(), SyntaxError> {
        if self.skip(byte) { Ok(()) } else { Err(self.wrong(named)) }
    }

    fn error(&self, span: Range<usize>, what: String) -> SyntaxError {
        SyntaxError { span, what: format!("not JSON: {what}"), hint: String::new() }
    }

    /// What comes next is not `expected`.
    fn wrong(&self, expected: &str) -> SyntaxError {
        let here = self.at..self.at + 1;
        match (self.text[self.at..].chars().next(), self.open.last()) {
            (Some(found), _) => {
                self.error(here, format!("expected {expected}, found `{}`", found.escape_default()))
            }
            (None, None) => self.error(here, format!("expected {expected}, but the file ends here")),
            (None, Some(open)) => {
                let line = self.text[..*open].matches('\n').count() + 1;
                let bracket = &self.text[*open..*open + 1];
                let what =
                    format!("expected {expected}, but the file ends inside the `{bracket}` of line {line}");
                SyntaxError {
                    hint: "the file seems to be cut off: write it again".into(),
                    ..self.error(here, what)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> (usize, String) {
        let error = parse(text).unwrap_err();
        (error.span.start, error.what)
    }

    #[test]
    fn values_keep_their_places() {
        let text = r#" {"a": [1, -2.5, "x\n"], "b": null} "#;
        let root = parse(text).unwrap();
        assert_eq!(root.span, 1..text.len() - 1);
        let b = root.find(&["a".into(), 2.into()]).unwrap();
        assert_eq!((&text[b.span.clone()], &b.value), (r#""x\n""#, &Value::Text("x\n".into())));
    }

    #[test]
    fn what_is_not_json_is_placed_and_named() {
        let not = |what: &str| format!("not JSON: {what}");
        assert_eq!(
            refused("{\n \"a\": [1,\n"),
            (12, not("expected a value, but the file ends inside the `[` of line 2"))
        );
        assert_eq!(refused("{\"a\" 1}"), (5, not("expected `:`, found `1`")));
        assert_eq!(refused("[1 2]"), (3, not("expected `,` or `]`, found `2`")));
        assert_eq!(refused("[1] x"), (4, not("expected the end of the file, found `x`")));
        assert_eq!(refused("{\"a\": 1, \"a\": 2}"), (9, not("the key `a` stands twice in one object")));
        assert_eq!(refused("\"abc"), (0, not("the text has no closing quote")));
        assert_eq!(refused("[01]"), (1, not("not a JSON number")));
        assert_eq!(refused(""), (0, not("expected a value, but the file ends here")));
        assert_eq!(refused(&"[".repeat(200)).1, not("nested deeper than 127 levels"));
    }

    /// Texts of JSON's own letters, so that many are JSON.
    fn jsonish() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"\\u00e9\"",
            "\"",
            "\\",
            "1",
            "-0.5e3",
            "18446744073709551616",
            "null",
            "true",
            " ",
            "\n",
            "é",
            "tru",
            "1.",
            "\"b\":",
            "[1,2]",
            "{\"c\":{}}",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_same_texts_are_json_here_and_in_serde_json(text in jsonish()) {
            let here = parse(&text);
            let there = serde_json::from_str::<serde_json::Value>(&text);
            let twice = matches!(&here, Err(e) if e.what.contains("twice"));
            prop_assert!(twice || here.is_ok() == there.is_ok(), "{text}: {here:?} {there:?}");
        }
    }
}
