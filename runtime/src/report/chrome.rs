//! The measured run as a trace for Perfetto or chrome://tracing: every action of every rank, in the words in which
//! `narrows simulate --trace` writes the predicted one.
//!
//! Not here: the file's format (`narrows_planner::trace`).

use std::io::Write;

use narrows_planner::plan::Plan;
use narrows_planner::schedule::Event;
use narrows_planner::trace::{ChromeTrace, Heading};

use super::ReportError;
use super::files::{RunFolder, TraceEvent};
use super::lines::read_lines;

/// Writes the traces of all ranks of `plan`'s run as one.
///
/// # Errors
/// A rank's trace is damaged, or the writer's.
pub fn write_chrome(folder: &RunFolder, plan: &Plan, writer: impl Write) -> Result<(), ReportError> {
    let failed = |source| ReportError::Io { path: folder.root().to_owned(), source };
    let mut chrome = ChromeTrace::new(writer).map_err(failed)?;
    for seat in plan.seats() {
        let (rank, host) = (seat.placement.rank, &seat.placement.host);
        let name = format!("rank {rank}: replica {} stage {}, {host}", seat.replica, seat.stage);
        chrome.heading(&Heading::Process { rank, name: name.into() }).map_err(failed)?;
        read_lines(&folder.trace(rank), |_, e: TraceEvent| {
            let event = Event { rank, action: e.action, start_s: e.start_s, end_s: e.end_s };
            chrome.event(&event.trace()).map_err(failed)
        })?;
    }
    chrome.finish().map_err(failed)
}
