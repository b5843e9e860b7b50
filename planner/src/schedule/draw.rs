//! A schedule as a picture: rows are ranks, columns are time.
//! ```text
//! 0-9  forward of microbatch 0-9, 10-19, ..     =  reduce     .  waiting
//! a-j  input gradient, in the same way          |  step
//! A-J  weight gradient, in the same way         x  exchange
//! ```
//! A column shows what took most of its time. Receiving has no mark: a rank that waits for a message waits. Waiting
//! in a reduce or an exchange belongs to it. A rank's model chunks have the same marks.

use super::check::meetings;
use super::replay::replay;
use super::{Action, Checked, Event, Schedule};
use crate::plan::Plan;

/// Draws the schedule of optimiser step `step` as it would run if messages took no time, one column per
/// `column_s` seconds of `seconds(rank, action)`.
pub fn draw(
    schedule: &Checked<Schedule>,
    plan: &Plan,
    step: u64,
    seconds: impl Fn(u32, Action) -> f64,
    column_s: f64,
) -> String {
    let events = replay(schedule, &meetings(plan, step, |_| true), seconds)
        .expect("a checked schedule does not deadlock");
    draw_events(&events, column_s)
}

/// Draws events that a simulation or a run recorded, one column per `column_s` seconds; waits are left blank.
pub fn draw_events(events: &[Event], column_s: f64) -> String {
    let ranks = events.iter().map(|e| e.rank + 1).max().unwrap_or(0);
    let end_s = events.iter().map(|e| e.end_s).fold(0.0, f64::max);
    let columns = (end_s / column_s - 1e-6).ceil().max(0.0) as usize;
    let width = ranks.saturating_sub(1).to_string().len();
    let row = |rank| format!("rank {rank:>width$}  {}\n", row(events, rank, columns, column_s));
    (0..ranks).map(row).collect()
}

fn row(events: &[Event], rank: u32, columns: usize, column_s: f64) -> String {
    let mut cells = vec![('.', 0.0); columns];
    for event in events.iter().filter(|e| e.rank == rank) {
        let Some(mark) = mark(event.action) else { continue };
        let first = (event.start_s / column_s) as usize;
        for (column, cell) in cells.iter_mut().enumerate().skip(first) {
            let start_s = event.start_s.max(column as f64 * column_s);
            let covered_s = event.end_s.min((column + 1) as f64 * column_s) - start_s;
            if covered_s <= 0.0 {
                break;
            }
            if covered_s > cell.1 + 1e-9 * column_s {
                *cell = (mark, covered_s);
            }
        }
    }
    cells.into_iter().map(|(mark, _)| mark).collect()
}

fn mark(action: Action) -> Option<char> {
    let numbered = |first: u8, microbatch: u32| char::from(first + (microbatch % 10) as u8);
    match action {
        Action::Forward { microbatch, .. } => Some(numbered(b'0', microbatch)),
        Action::BackwardInput { microbatch, .. } => Some(numbered(b'a', microbatch)),
        Action::BackwardWeight { microbatch, .. } => Some(numbered(b'A', microbatch)),
        Action::Reduce => Some('='),
        Action::Step => Some('|'),
        Action::Exchange => Some('x'),
        Action::Receive { .. } | Action::Send { .. } => None,
    }
}
