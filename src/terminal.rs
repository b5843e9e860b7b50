//! Where the program speaks: results to stdout, the rest to stderr; a reader that has gone away is no error.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use narrows_planner::explain::{Colours, Style};
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

/// How stdout takes text: colours on a terminal unless `NO_COLOR` is set, its width, or `COLUMNS`.
pub fn style() -> Style {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return Style::PLAIN;
    }
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let measured = || rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
    let columns = told.or_else(measured).filter(|&columns| columns > 0).unwrap_or(Style::PLAIN.columns);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Style { columns, colours: if plain { Colours::None } else { Colours::Ansi } }
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
