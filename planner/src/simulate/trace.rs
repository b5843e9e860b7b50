//! A simulation as a trace: row 0 of each rank is what it does, one row more for every rank that it sends to.
//!
//! The usual step comes first; where exchanges have a period, the step in which all are due follows it.
//!
//! Not here: the file's format (`trace`).

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::{Simulation, Transfer};
use crate::plan::Plan;
use crate::schedule::Event;
use crate::trace::{ChromeTrace, Heading, TraceEvent};

/// Writes the simulation of `plan` for Perfetto.
///
/// # Errors
/// As the writer's.
pub fn write_trace(simulation: &Simulation, plan: &Plan, writer: impl Write) -> io::Result<()> {
    let mut trace = ChromeTrace::new(writer)?;
    let rows = Rows::of(simulation);
    for heading in rows.headings(plan) {
        trace.heading(&heading)?;
    }
    let after_s = simulation.timeline.iter().map(|e| e.end_s).fold(0.0, f64::max);
    let usual = (&simulation.timeline, &simulation.transfers, 0.0);
    let exchange = (&simulation.exchange_timeline, &simulation.exchange_transfers, after_s);
    for (events, transfers, from_s) in [usual, exchange] {
        for event in events.iter().filter(|e| e.end_s > e.start_s) {
            let shifted = Event { start_s: event.start_s + from_s, end_s: event.end_s + from_s, ..*event };
            trace.event(&shifted.trace())?;
        }
        for transfer in transfers {
            trace.event(&rows.bar(transfer, from_s))?;
        }
    }
    trace.finish()
}

/// The row of each pair of ranks among the sender's rows.
struct Rows(BTreeMap<(u32, u32), u32>);

impl Rows {
    fn of(simulation: &Simulation) -> Self {
        let mut rows = BTreeMap::new();
        let mut last = BTreeMap::new();
        for pair in &simulation.pairs {
            let row = last.entry(pair.from).and_modify(|row| *row += 1).or_insert(1);
            rows.insert((pair.from, pair.to), *row);
        }
        Rows(rows)
    }

    fn headings(&self, plan: &Plan) -> Vec<Heading<'static>> {
        let process = |seat: crate::plan::Seat<'_>| {
            let (rank, host) = (seat.placement.rank, &seat.placement.host);
            let name = format!("rank {rank}: replica {} stage {}, {host}", seat.replica, seat.stage);
            [
                Heading::Process { rank, name: name.into() },
                Heading::Thread { rank, thread: 0, name: "actions".into() },
            ]
        };
        let row = |(&(rank, to), &thread): (&(u32, u32), &u32)| Heading::Thread {
            rank,
            thread,
            name: format!("to rank {to}").into(),
        };
        plan.seats().into_iter().flat_map(process).chain(self.0.iter().map(row)).collect()
    }

    fn bar(&self, transfer: &Transfer, from_s: f64) -> TraceEvent<'static> {
        TraceEvent {
            name: format!("{} B", transfer.bytes).into(),
            category: "transfer".into(),
            rank: transfer.from,
            thread: self.0[&(transfer.from, transfer.to)],
            start_us: (transfer.start_s + from_s) * 1e6,
            duration_us: (transfer.end_s - transfer.start_s) * 1e6,
            args: vec![("bytes", transfer.bytes.into()), ("to", transfer.to.into())],
        }
    }
}
