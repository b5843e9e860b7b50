//! Measured traces, folded while they are read: busy seconds of every step, actions of the few steps to be drawn.
//!
//! A trace holds a line an action; a long run has millions, so none is kept but those asked for. What ran after the
//! checkpoint that a run later resumed from was run again: an event is superseded where a later resume went back to
//! its step or before.
//!
//! Not here: the choice of the steps to draw (`compare`).

use std::collections::BTreeMap;

use narrows_planner::schedule::Action;

use super::ReportError;
use super::files::{EventKind, RunEvent, RunFolder, TraceEvent};
use super::lines::read_lines;

/// One rank's trace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RankTrace {
    /// Seconds of computing by step.
    pub busy_s: BTreeMap<u64, f64>,
    /// The actions of the steps asked for, in the order of their writing.
    pub drawn: Vec<TraceEvent>,
}

impl RankTrace {
    /// Reads the trace of `rank`, keeping the actions of the steps in `draw`; empty where it wrote none.
    pub fn read(
        folder: &RunFolder,
        rank: u32,
        draw: &[u64],
        events: &[RunEvent],
    ) -> Result<Self, ReportError> {
        let mut trace = Self::default();
        read_lines(&folder.trace(rank), |_, event: TraceEvent| {
            if !superseded(&event, events) {
                trace.take(event, draw);
            }
            Ok(())
        })?;
        Ok(trace)
    }

    fn take(&mut self, event: TraceEvent, draw: &[u64]) {
        if is_compute(&event.action) {
            *self.busy_s.entry(event.step).or_default() += event.end_s - event.start_s;
        }
        if draw.contains(&event.step) {
            self.drawn.push(event);
        }
    }
}

/// Whether the device computes for the model in this action, rather than waiting or exchanging.
pub fn is_compute(action: &Action) -> bool {
    use Action::*;
    matches!(action, Forward { .. } | BackwardInput { .. } | BackwardWeight { .. } | Step)
}

fn superseded(event: &TraceEvent, events: &[RunEvent]) -> bool {
    events.iter().any(|e| e.kind == EventKind::Resume && e.step <= event.step && event.start_s < e.time_s)
}

#[cfg(test)]
mod tests {
    use super::super::lines::Appender;
    use super::*;

    fn event(step: u64, action: Action, start_s: f64, end_s: f64) -> TraceEvent {
        TraceEvent { step, action, start_s, end_s }
    }

    #[test]
    fn what_a_resume_ran_again_counts_once_and_waiting_is_not_busy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(dir.path());
        let forward = Action::Forward { microbatch: 0, chunk: 0 };
        let receive = Action::Receive {
            from: 1,
            what: narrows_planner::schedule::Payload::Gradient,
            microbatch: 0,
            chunk: 0,
        };
        let lines = [
            event(3, forward, 1.0, 2.0),
            event(4, forward, 2.0, 4.0),
            event(4, receive, 12.0, 15.0),
            event(4, forward, 15.0, 15.5),
            event(4, Action::Exchange, 15.5, 17.0),
            event(4, Action::Step, 17.0, 17.25),
        ];
        Appender::open(&folder.trace(0)).unwrap().append_all(&lines).unwrap();
        let resume = RunEvent { time_s: 10.0, kind: EventKind::Resume, step: 4, text: String::new() };
        let trace = RankTrace::read(&folder, 0, &[4], &[resume]).unwrap();
        assert_eq!(trace.busy_s, BTreeMap::from([(3, 1.0), (4, 0.75)]));
        assert_eq!(trace.drawn, lines[2..]);
    }
}
