//! One error for every input file, rendered as compilers do:
//!
//! ```text
//!   error: unknown key `ndoes`
//!    --> cluster.toml:3:1
//!     |
//!   3 | ndoes = 4
//!     | ^^^^^ not a key of this table
//!     |
//!     = help: did you mean `nodes`?
//! ```
//! [`Display`](std::fmt::Display) gives this without colour; whether the reader's terminal has colour is known to the
//! caller, who then asks for [`InputError::coloured`].

use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// An input file that cannot be used: where in it, what is wrong there, what was expected and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.render(&Renderer::plain()))]
pub struct InputError(Box<Parts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    path: PathBuf,
    place: Option<Place>,
    what: String,
    label: String,
    hint: Option<String>,
}

/// A span of a text, on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    text: String,
    span: Range<usize>,
}

impl InputError {
    /// An error in the bytes `span` of `text`, the file's content; spans beyond the text or over several lines are
    /// cut to what can be pointed at.
    pub(super) fn new(path: &Path, text: String, span: Range<usize>, what: String) -> Self {
        let place = Some(Place { span: on_one_line(&text, span), text });
        InputError(Box::new(Parts {
            path: path.to_owned(),
            place,
            what: visible(&what),
            label: String::new(),
            hint: None,
        }))
    }

    /// The file cannot be read at all.
    pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let what = visible(&format!("cannot read {}: {error}", path.display()));
        InputError(Box::new(Parts {
            path: path.to_owned(),
            place: None,
            what,
            label: String::new(),
            hint: None,
        }))
    }

    pub(super) fn with_label(mut self, label: impl Into<String>) -> Self {
        self.0.label = visible(&label.into());
        self
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(visible(&hint.into()));
        self
    }

    /// The file at fault.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Line and column of the fault, both from 1, columns in characters; `None` where the file could not be read.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        let Place { text, span } = self.0.place.as_ref()?;
        let before = &text[..span.start];
        let column = before[before.rfind('\n').map_or(0, |at| at + 1)..].chars().count() + 1;
        Some((before.matches('\n').count() + 1, column))
    }

    /// What is wrong, in one line without the place.
    pub fn message(&self) -> &str {
        &self.0.what
    }

    /// The way out, where there is one to tell.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The rendering with ANSI colours.
    pub fn coloured(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let Parts { path, place, what, label, hint } = &*self.0;
        let mut group = Group::with_title(Level::ERROR.primary_title(what.as_str()));
        if let Some(Place { text, span }) = place {
            let caret = AnnotationKind::Primary.span(span.clone()).label(label.as_str());
            group = group.element(
                Snippet::source(text.as_str()).path(visible(&path.to_string_lossy())).annotation(caret),
            );
        }
        if let Some(hint) = hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        renderer.render(&[group])
    }
}

/// The part of `span` on its first line, at least one character wide where the line has one, on character borders.
fn on_one_line(text: &str, span: Range<usize>) -> Range<usize> {
    let border = |at: &usize| text.is_char_boundary(*at);
    let start = (0..=span.start.min(text.len())).rev().find(border).unwrap_or(0);
    let line_end = text[start..].find(['\n', '\r']).map_or(text.len(), |at| start + at);
    let end = span.end.clamp(start + usize::from(start < line_end), line_end);
    start..(end..=line_end).find(border).unwrap_or(line_end)
}

/// A message may quote the file: what would steer a terminal is shown escaped.
fn visible(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, span: Range<usize>) -> InputError {
        InputError::new(Path::new("a.toml"), text.into(), span, "wrong".into())
    }

    #[test]
    fn an_error_shows_file_line_column_caret_and_hint() {
        let shown = error("a = 1\nbé = 2\n", 12..13).with_label("this").with_hint("that").to_string();
        let expected = "\
error: wrong
 --> a.toml:2:6
  |
2 | bé = 2
  |      ^ this
  |
  = help: that";
        assert_eq!(shown, expected);
    }

    #[test]
    fn line_and_column_count_characters_from_one() {
        assert_eq!(error("a = 1\nbé = 2\n", 12..13).line_and_column(), Some((2, 6)));
        assert_eq!(error("", 0..0).line_and_column(), Some((1, 1)));
    }

    #[test]
    fn a_span_over_lines_is_cut_to_its_first() {
        assert_eq!(on_one_line("abc\ndef", 1..6), 1..3);
        assert_eq!(on_one_line("abc", 9..12), 3..3);
        assert_eq!(on_one_line("é", 1..1), 0..2);
        assert_eq!(on_one_line("a\nb", 1..1), 1..1);
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(
            InputError::unreadable(Path::new("x/a.toml"), &missing).to_string(),
            "error: cannot read x/a.toml: entity not found"
        );
    }
}
