//! Input files, and errors that show where in them something is wrong.
//!
//! ```text
//!   file ──> text ──parse──> tree (every key and value with its place) ──decode──> serde type ──check──> usable type
//!                                        │                                 │                     │
//!                                        └────────── place of ─────── Fault: path in the tree, what, hint
//!                                                                          │
//!                                                                     InputError: file:line:column, caret, hint
//! ```
//! A serde type is the only declaration of a file's keys: what is required, of which type, and which key an unknown
//! one is nearest to all follow from it. Both TOML and JSON become the same tree, so a rule is written once whichever
//! file it guards: a check names the value at fault by its path ([`Fault::at`]) and the tree knows the place.
//!
//! Limits: the first fault is reported, not all; files are read whole.
//!
//! Not here: what the keys mean (`inventory`, `model`, `plan`).

mod decode;
mod either;
mod error;
mod json;
mod nearest;
mod tree;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub(crate) use either::NameOr;
pub use error::InputError;
pub(crate) use nearest::{did_you_mean, listed};
pub use tree::Step;
use tree::{Node, On};

/// The path to a value, of keys and indices: `way!["cluster", 1, "nic"]`.
macro_rules! way {
    ($($step:expr),* $(,)?) => { [$($crate::input::Step::from($step)),*] };
}
pub(crate) use way;

/// What is wrong, and with which value: to be placed in the file by [`Document::error`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    at: Vec<Step>,
    on: On,
    what: String,
    label: Option<String>,
    hint: Option<String>,
}

impl Fault {
    /// A fault of the value at `at`; `what` is one line, lower case, without a full stop. Where the file has no such
    /// value (it was left out), the nearest value around it is shown.
    pub fn at<S: Into<Step>>(at: impl IntoIterator<Item = S>, what: impl Into<String>) -> Self {
        Fault { at: at.into_iter().map(Into::into).collect(), ..Fault::here(what) }
    }

    /// A fault of the whole value that the check was given.
    pub fn here(what: impl Into<String>) -> Self {
        Fault { at: Vec::new(), on: On::Value, what: what.into(), label: None, hint: None }
    }

    /// With the few words under the caret.
    pub fn label(self, label: impl Into<String>) -> Self {
        Fault { label: Some(label.into()), ..self }
    }

    /// With the way out.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Fault { hint: Some(hint.into()), ..self }
    }

    /// The same fault, told of the value at `at`.
    pub fn of<S: Into<Step>>(self, at: impl IntoIterator<Item = S>) -> Self {
        Fault { at: at.into_iter().map(Into::into).collect(), ..self }
    }

    /// The same fault seen from outside: `outer` goes before its path.
    pub fn within<S: Into<Step>>(mut self, outer: impl IntoIterator<Item = S>) -> Self {
        self.at.splice(0..0, outer.into_iter().map(Into::into));
        self
    }
}

/// A file that was read and parsed, not yet decoded.
#[derive(Debug, Clone)]
pub struct Document {
    path: PathBuf,
    text: String,
    root: Node,
}

impl Document {
    /// Reads and parses a TOML file.
    ///
    /// # Errors
    /// The file is missing, unreadable, not UTF-8 or not TOML.
    pub fn toml(path: &Path) -> Result<Self, InputError> {
        Self::parse(path, tree::from_toml)
    }

    /// Reads and parses a JSON file (RFC 8259; a key twice in one object is refused).
    ///
    /// # Errors
    /// The file is missing, unreadable, not UTF-8 or not JSON.
    pub fn json(path: &Path) -> Result<Self, InputError> {
        Self::parse(path, json::parse)
    }

    fn parse(
        path: &Path,
        parse: impl FnOnce(&str) -> Result<Node, tree::SyntaxError>,
    ) -> Result<Self, InputError> {
        let text = read_text(path)?;
        match parse(&text) {
            Ok(root) => Ok(Document { path: path.to_owned(), text, root }),
            Err(e) => {
                let error = InputError::new(path, text, e.span, e.what);
                Err(if e.hint.is_empty() { error } else { error.with_hint(e.hint) })
            }
        }
    }

    /// The value as a serde type: the declaration of the keys.
    ///
    /// # Errors
    /// A key is missing or unknown, or a value is not what the type wants.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, InputError> {
        T::deserialize(decode::Decoder(&self.root)).map_err(|fault| self.error(fault.outermost_first()))
    }

    /// The fault with its place in this file.
    pub fn error(&self, fault: Fault) -> InputError {
        let span = self.root.locate(&fault.at, fault.on);
        let mut error = InputError::new(&self.path, self.text.clone(), span, fault.what);
        if let Some(label) = fault.label {
            error = error.with_label(label);
        }
        if let Some(hint) = fault.hint {
            error = error.with_hint(hint);
        }
        error
    }

    /// Whether the file gives a value at `at`.
    pub fn has<S: Into<Step>>(&self, at: impl IntoIterator<Item = S>) -> bool {
        self.root.find(&at.into_iter().map(Into::into).collect::<Vec<_>>()).is_some()
    }

    /// Where the file lies: what paths inside it are relative to.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

fn read_text(path: &Path) -> Result<String, InputError> {
    let bytes = std::fs::read(path).map_err(|e| InputError::unreadable(path, &e))?;
    String::from_utf8(bytes).map_err(|e| {
        // Everything up to the bad byte is the same text with replacement characters behind it.
        let at = e.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(e.as_bytes()).into_owned();
        InputError::new(path, text, at..at + 1, "the file is not UTF-8 text".into()).with_label("this byte")
    })
}
