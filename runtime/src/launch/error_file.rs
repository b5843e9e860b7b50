//! The error file of torch's `@record`: what a failed rank wants to say.
//!
//! A rank whose `TORCHELASTIC_ERROR_FILE` names a file writes there, as it fails,
//! `{"message": {"message": "Type: text", "extraInfo": {"py_callstack": "…", "timestamp": "<unix s>"}}}`; the outer
//! `message` may also be the text itself. Read at most [`LIMIT`] bytes; whatever does not fit is no message.
//! Source: torch.distributed.elastic.multiprocessing.errors (2.15).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{LaunchError, RankCommand};

const VARIABLE: &str = "TORCHELASTIC_ERROR_FILE";

/// Bytes of a file that is believed to be an error file.
const LIMIT: u64 = 1 << 20;

/// Where this rank would write it.
pub(super) fn path(rank: &RankCommand) -> Option<PathBuf> {
    rank.env.iter().find(|(name, _)| name == VARIABLE).map(|(_, path)| PathBuf::from(path))
}

/// Removes what an earlier job left.
pub(super) fn remove(rank: &RankCommand) -> Result<(), LaunchError> {
    let Some(path) = path(rank) else { return Ok(()) };
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LaunchError::Log { path, source }),
        _ => Ok(()),
    }
}

/// The message in it, if there is one.
pub(super) fn read(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(LIMIT).read_to_end(&mut text).ok()?;
    message(&text)
}

fn message(json: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let outer = value.get("message")?;
    outer.get("message").unwrap_or(outer).as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_anything_else_is_none() {
        let nested = br#"{"message":{"message":"RuntimeError: boom","extraInfo":{"timestamp":"1"}}}"#;
        assert_eq!(message(nested).as_deref(), Some("RuntimeError: boom"));
        assert_eq!(message(br#"{"message":"boom"}"#).as_deref(), Some("boom"));
        for other in ["", "{", "[]", r#"{"message":7}"#, r#"{"message":{"message":[]}}"#, r#"{"error":"x"}"#]
        {
            assert_eq!(message(other.as_bytes()), None, "{other}");
        }
    }
}
