//! Where the program speaks: results to stdout, the rest to stderr; a reader that has gone away is no error.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use narrows_planner::input::InputError;
use narrows_planner::simulate::SimulateError;

/// The user's input is at fault.
pub const BAD_INPUT: u8 = 2;

/// Writes a result.
pub fn say(text: impl std::fmt::Display) {
    quietly(writeln!(std::io::stdout(), "{text}"));
}

/// Writes what is no result.
pub fn note(text: impl std::fmt::Display) {
    quietly(writeln!(std::io::stderr(), "{text}"));
}

/// Prints the error and gives its exit code: 2 where a file that the user wrote is at fault, else 1.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    complain(format_args!("{error:#}"));
    let bad_input = error.chain().any(|e| e.is::<InputError>() || e.is::<SimulateError>());
    ExitCode::from(if bad_input { BAD_INPUT } else { 1 })
}

/// Writes an error; those of input files already begin with the word.
pub fn complain(error: impl std::fmt::Display) {
    let text = error.to_string();
    note(format_args!("error: {}", text.strip_prefix("error: ").unwrap_or(&text)));
}

fn quietly(result: std::io::Result<()>) {
    match result {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        _ => {}
    }
}
