//! A tree as a serde data format, so that derived types are the one declaration of a file's keys.
//!
//! A [`Fault`] is the format's error. It is born where serde finds it, without a place, and gathers the way as it
//! climbs out of lists and tables (innermost step first, until [`Fault::outermost_first`] turns it round).

use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};

use super::Fault;
use super::nearest::{did_you_mean, nearest};
use super::tree::{Entry, Node, On, Step, Value};

/// Hands a node to serde.
pub(super) struct Decoder<'a>(pub(super) &'a Node);

impl Fault {
    fn climb(mut self, step: impl Into<Step>) -> Self {
        self.at.push(step.into());
        self
    }

    /// The fault at the end of its climb: its way turned round and told, of the table where the fault is of a key.
    pub(super) fn outermost_first(mut self) -> Self {
        self.at.reverse();
        let told = self.at.len() - usize::from(self.on == On::Key);
        if told > 0 {
            self.what = format!("{}: {}", dotted(&self.at[..told]), self.what);
        }
        self
    }
}

/// `cluster[1].nic.rate`
fn dotted(path: &[Step]) -> String {
    let mut told = String::new();
    for step in path {
        match step {
            Step::Key(key) if told.is_empty() => told.push_str(key),
            Step::Key(key) => told.extend([".", key]),
            Step::Index(index) => told.push_str(&format!("[{index}]")),
        }
    }
    told
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(what: T) -> Self {
        Fault::here(what.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Fault::here(format!("expected {}, found {}", plain(&expected.to_string()), described(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Fault::here(format!("expected {}, found one of length {length}", plain(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let fault =
            Fault::here(format!("`{variant}` is not known here, expected one of: {}", known.join(", ")));
        nearest(variant, known).map_or(fault.clone(), |near| fault.hint(format!("did you mean `{near}`?")))
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Fault::here(format!("unknown key `{key}`"))
            .label("not a key of this table")
            .hint(did_you_mean(key, known))
    }

    fn missing_field(key: &'static str) -> Self {
        Fault::here(format!("missing key `{key}`")).label(format!("`{key}` is missing in this table"))
    }
}

/// serde's names of types, for people.
fn plain(expected: &str) -> String {
    match expected {
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" => format!("a whole number from 0 to {}", u64::MAX),
        "f64" => "a number".into(),
        "a string" => "a text".into(),
        _ if expected.starts_with("struct ") || expected.starts_with("map") => "a table".into(),
        _ if expected.starts_with("a sequence") => "a list".into(),
        _ => expected.replace("an array of length", "a list of length"),
    }
}

fn described(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(truth) => format!("`{truth}`"),
        Unexpected::Unsigned(integer) => format!("`{integer}`"),
        Unexpected::Signed(integer) => format!("`{integer}`"),
        Unexpected::Float(float) => format!("`{float:?}`"),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "a table".into(),
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        other => other.to_string(),
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(truth) => Unexpected::Bool(*truth),
        Value::Integer(integer) => {
            i64::try_from(*integer).map_or(Unexpected::Other("an integer"), Unexpected::Signed)
        }
        Value::Float(float) => Unexpected::Float(*float),
        Value::Text(text) => Unexpected::Str(text),
        Value::Date => Unexpected::Other("a date"),
        Value::List(_) => Unexpected::Seq,
        Value::Table(_) => Unexpected::Map,
    }
}

/// What an enum expects.
struct OneOf(&'static [&'static str]);

impl de::Expected for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of: {}", self.0.join(", "))
    }
}

impl<'de> Deserializer<'de> for Decoder<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(*truth),
            Value::Integer(integer) => match (u64::try_from(*integer), i64::try_from(*integer)) {
                (Ok(unsigned), _) => visitor.visit_u64(unsigned),
                (_, Ok(signed)) => visitor.visit_i64(signed),
                _ => visitor.visit_i128(*integer),
            },
            Value::Float(float) => visitor.visit_f64(*float),
            Value::Text(text) => visitor.visit_str(text),
            date @ Value::Date => Err(de::Error::invalid_type(unexpected(date), &visitor)),
            Value::List(nodes) => visitor.visit_seq(Elements { nodes: nodes.iter().enumerate() }),
            Value::Table(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Text(text) => visitor.visit_enum(StrDeserializer::new(text)),
            other => Err(de::Error::invalid_type(unexpected(other), &OneOf(known))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// The elements of a list that are still to come.
struct Elements<'a> {
    nodes: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(Decoder(node)).map(Some).map_err(|fault| fault.climb(index))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

/// The entries of a table that are still to come.
struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    /// The entry whose key was handed out last.
    value: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.value = self.entries.next();
        let Some(entry) = self.value else { return Ok(None) };
        let on_key = |fault: Fault| Fault { on: On::Key, ..fault.climb(entry.key.as_str()) };
        seed.deserialize(StrDeserializer::new(&entry.key)).map(Some).map_err(on_key)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = self.value.expect("serde asks for a value after its key");
        seed.deserialize(Decoder(&entry.node)).map_err(|fault| fault.climb(entry.key.as_str()))
    }
}
