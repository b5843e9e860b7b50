//! A file as a tree whose keys and values know their place in the text, whichever language the file is in.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into a table: by key.
    Key(String),
    /// Into a list: by index from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Step::Key(key.into())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Step::Index(index)
    }
}

/// Which end of a `key = value` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    Key,
    Value,
}

/// A value and the bytes of the text that hold it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) span: Range<usize>,
    pub(super) value: Value,
}

/// What TOML and JSON have between them; neither writes an integer that needs more than 64 bits and a sign.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    /// TOML's dates: no file of ours has any, so that they are only ever "expected …, found a date".
    Date,
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Range<usize>,
    pub(super) node: Node,
}

/// Text that is not of its language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) span: Range<usize>,
    pub(super) what: String,
    /// Empty where there is none.
    pub(super) hint: String,
}

impl Node {
    /// The value at the end of the path.
    pub(super) fn find(&self, path: &[Step]) -> Option<&Node> {
        path.iter().try_fold(self, |node, step| node.step(step).map(|(_, node)| node))
    }

    /// The place of the key or value at the end of the path, or of the nearest value around it.
    pub(super) fn locate(&self, path: &[Step], on: On) -> Range<usize> {
        let Some((first, rest)) = path.split_first() else { return self.span.clone() };
        match self.step(first) {
            Some((key_span, _)) if rest.is_empty() && on == On::Key => key_span,
            Some((_, node)) => node.locate(rest, on),
            None => self.span.clone(),
        }
    }

    /// One step down, with the place of the key. Resolved files put the unit behind a name and lists in the plural
    /// (`rate` is `rate_bytes_per_s`, `link` is `links`): the first key that begins so will do.
    fn step(&self, step: &Step) -> Option<(Range<usize>, &Node)> {
        match (&self.value, step) {
            (Value::Table(entries), Step::Key(key)) => entries
                .iter()
                .find(|e| e.key == *key)
                .or_else(|| entries.iter().find(|e| e.key.starts_with(key.as_str())))
                .map(|e| (e.key_span.clone(), &e.node)),
            (Value::List(nodes), Step::Index(index)) => nodes.get(*index).map(|n| (n.span.clone(), n)),
            _ => None,
        }
    }
}

/// Parses TOML.
pub(super) fn from_toml(text: &str) -> Result<Node, SyntaxError> {
    match DeTable::parse(text) {
        Ok(table) => from_table(table.get_ref(), table.span()),
        Err(e) => {
            let what = e.message().lines().collect::<Vec<_>>().join(", ");
            Err(SyntaxError {
                span: e.span().unwrap_or(0..0),
                what: format!("not TOML: {what}"),
                hint: String::new(),
            })
        }
    }
}

fn from_table(table: &DeTable<'_>, span: Range<usize>) -> Result<Node, SyntaxError> {
    let mut entries = table
        .iter()
        .map(|(key, value)| {
            Ok(Entry { key: key.get_ref().to_string(), key_span: key.span(), node: from_value(value)? })
        })
        .collect::<Result<Vec<_>, _>>()?;
    // toml sorts by name; the first fault to report is the first in the file.
    entries.sort_by_key(|e| e.key_span.start);
    Ok(Node { span, value: Value::Table(entries) })
}

fn from_value(value: &Spanned<DeValue<'_>>) -> Result<Node, SyntaxError> {
    let span = value.span();
    let value = match value.get_ref() {
        DeValue::Table(table) => return from_table(table, span),
        DeValue::Array(nodes) => Value::List(nodes.iter().map(from_value).collect::<Result<_, _>>()?),
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Integer(integer) => {
            Value::Integer(from_integer(integer).ok_or_else(|| too_large(span.clone()))?)
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().map_err(|_| too_large(span.clone()))?),
    };
    Ok(Node { span, value })
}

fn from_integer(integer: &DeInteger<'_>) -> Option<i128> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(i128::from)
}

fn too_large(span: Range<usize>) -> SyntaxError {
    SyntaxError { span, what: "not TOML: the number is too large".into(), hint: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n[t]\nrate_bytes_per_s = 2.5\nlist = [\"x\", { y = true }]\n";

    fn shown(path: &[Step], on: On) -> &'static str {
        &TEXT[from_toml(TEXT).unwrap().locate(path, on)]
    }

    #[test]
    fn a_path_leads_to_the_bytes_of_its_key_or_value() {
        let y = [Step::from("t"), "list".into(), 1.into(), "y".into()];
        assert_eq!(shown(&y, On::Value), "true");
        assert_eq!(shown(&y, On::Key), "y");
        assert_eq!(shown(&["t".into(), "rate".into()], On::Value), "2.5");
        assert_eq!(shown(&["t".into(), "list".into(), 0.into(), "gone".into()], On::Value), "\"x\"");
    }

    #[test]
    fn entries_stand_in_the_order_of_the_file() {
        let Value::Table(entries) = from_toml("b = 1\na = 2\n").unwrap().value else { panic!("a table") };
        assert_eq!(entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn what_is_not_toml_is_placed() {
        let error = from_toml("a = 1\nb = \n").unwrap_err();
        assert_eq!(&"a = 1\nb = \n"[..error.span.start], "a = 1\nb = ");
        assert_eq!(from_toml("a = 9223372036854775808").unwrap_err().span, 4..23);
    }
}
