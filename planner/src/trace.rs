//! Traces for Perfetto and chrome://tracing: the JSON object format's complete events (`ph: "X"`), one process per
//! rank. The simulator and the worker write the same, so predicted and measured lie over each other.
//!
//! ```json
//! {"displayTimeUnit":"ms","traceEvents":[
//! {"ph":"M","name":"process_name","pid":0,"tid":0,"args":{"name":"rank 0: fast-0"}},
//! {"ph":"X","name":"forward 0","cat":"forward","pid":0,"tid":0,"ts":0.0,"dur":1250.0,"args":{"microbatch":0}}
//! ]}
//! ```
//! Source: "Trace Event Format", Google, 2016. Times are in microseconds.
//!
//! Events are written as they come; the file is closed by [`ChromeTrace::finish`] or, at the latest, on drop, so
//! what a failing program leaves is valid too. A process that is killed leaves a file without its last line, which
//! both viewers still open.
//!
//! Not here: what is traced, who measures it.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;

/// Something that took time.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceEvent<'a> {
    /// Shown on the bar.
    pub name: Cow<'a, str>,
    /// To filter and colour by.
    pub category: Cow<'a, str>,
    /// Process: the rank.
    pub rank: u32,
    /// Row inside the process: 0 computes, others move messages.
    pub thread: u32,
    /// Since the start of the trace, in microseconds.
    pub start_us: f64,
    /// In microseconds.
    pub duration_us: f64,
    /// Shown when the bar is selected.
    pub args: Vec<(&'a str, Value)>,
}

/// A row's heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heading<'a> {
    /// Of a rank.
    Process {
        /// The rank.
        rank: u32,
        /// Shown beside its rows.
        name: Cow<'a, str>,
    },
    /// Of a row inside a rank.
    Thread {
        /// The rank.
        rank: u32,
        /// The row.
        thread: u32,
        /// Shown beside the row.
        name: Cow<'a, str>,
    },
}

/// Writes a whole trace: headings, then events.
///
/// # Errors
/// As the writer's, and `InvalidInput` for a time that is not finite.
pub fn write_chrome<'a>(
    writer: impl Write,
    headings: impl IntoIterator<Item = Heading<'a>>,
    events: impl IntoIterator<Item = TraceEvent<'a>>,
) -> io::Result<()> {
    let mut trace = ChromeTrace::new(writer)?;
    headings.into_iter().try_for_each(|heading| trace.heading(&heading))?;
    events.into_iter().try_for_each(|event| trace.event(&event))?;
    trace.finish()
}

/// A trace being written.
pub struct ChromeTrace<W: Write> {
    writer: W,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Empty,
    HasLines,
    Closed,
}

impl<W: Write> ChromeTrace<W> {
    /// Begins the file. Every line is one write: give a buffered writer.
    ///
    /// # Errors
    /// As the writer's.
    pub fn new(mut writer: W) -> io::Result<Self> {
        writer.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
        Ok(ChromeTrace { writer, state: State::Empty })
    }

    /// Names a rank or one of its rows.
    ///
    /// # Errors
    /// As the writer's.
    pub fn heading(&mut self, heading: &Heading<'_>) -> io::Result<()> {
        let (kind, rank, thread, name) = match heading {
            Heading::Process { rank, name } => ("process_name", rank, &0, name),
            Heading::Thread { rank, thread, name } => ("thread_name", rank, thread, name),
        };
        let args = [("name", Value::from(name.as_ref()))];
        self.line(|map| {
            map.serialize_entry("ph", "M")?;
            map.serialize_entry("name", kind)?;
            map.serialize_entry("pid", rank)?;
            map.serialize_entry("tid", thread)?;
            map.serialize_entry("args", &Args(&args))
        })
    }

    /// Adds an event.
    ///
    /// # Errors
    /// As the writer's, and `InvalidInput` for a time that is not finite: JSON has no word for it.
    pub fn event(&mut self, event: &TraceEvent<'_>) -> io::Result<()> {
        if !(event.start_us.is_finite() && event.duration_us.is_finite()) {
            let text = format!("trace event \"{}\" of rank {}: time is not finite", event.name, event.rank);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.line(|map| {
            map.serialize_entry("ph", "X")?;
            map.serialize_entry("name", &event.name)?;
            map.serialize_entry("cat", &event.category)?;
            map.serialize_entry("pid", &event.rank)?;
            map.serialize_entry("tid", &event.thread)?;
            map.serialize_entry("ts", &event.start_us)?;
            map.serialize_entry("dur", &event.duration_us)?;
            map.serialize_entry("args", &Args(&event.args))
        })
    }

    /// Ends the file and flushes it.
    ///
    /// # Errors
    /// As the writer's.
    pub fn finish(mut self) -> io::Result<()> {
        self.close()
    }

    /// One object on its own line, written at once.
    fn line(&mut self, fill: impl FnOnce(&mut MapWriter<'_>) -> serde_json::Result<()>) -> io::Result<()> {
        let mut line = if self.state == State::Empty { b"\n".to_vec() } else { b",\n".to_vec() };
        let mut json = serde_json::Serializer::new(&mut line);
        let mut map = json.serialize_map(None)?;
        fill(&mut map)?;
        map.end()?;
        self.state = State::HasLines;
        self.writer.write_all(&line)
    }

    fn close(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.state, State::Closed) == State::Closed {
            return Ok(());
        }
        self.writer.write_all(b"\n]}\n")?;
        self.writer.flush()
    }
}

impl<W: Write> Drop for ChromeTrace<W> {
    fn drop(&mut self) {
        // Nobody is left to hear of a failure here; `finish` tells.
        let _ = self.close();
    }
}

type MapWriter<'a> = serde_json::ser::Compound<'a, &'a mut Vec<u8>, serde_json::ser::CompactFormatter>;

struct Args<'a>(&'a [(&'a str, Value)]);

impl serde::Serialize for Args<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> TraceEvent<'_> {
        TraceEvent {
            name: name.into(),
            category: "forward".into(),
            rank: 3,
            thread: 1,
            start_us: 1.5,
            duration_us: 0.25,
            args: vec![("microbatch", 7.into())],
        }
    }

    fn parsed(bytes: &[u8]) -> Vec<Value> {
        let trace: Value = serde_json::from_slice(bytes).unwrap();
        trace["traceEvents"].as_array().unwrap().clone()
    }

    #[test]
    fn an_event_carries_what_the_viewers_read() {
        let mut file = Vec::new();
        let heading = Heading::Process { rank: 3, name: "rank 3: \"slow\"\n".into() };
        write_chrome(&mut file, [heading], [event("forward 7")]).unwrap();
        let lines = parsed(&file);
        assert_eq!(lines[0]["args"]["name"], "rank 3: \"slow\"\n");
        let expected = serde_json::json!({
            "ph": "X", "name": "forward 7", "cat": "forward", "pid": 3, "tid": 1, "ts": 1.5, "dur": 0.25,
            "args": {"microbatch": 7}
        });
        assert_eq!(lines[1], expected);
    }

    #[test]
    fn a_trace_without_events_is_valid() {
        let mut file = Vec::new();
        write_chrome(&mut file, [], []).unwrap();
        assert!(parsed(&file).is_empty());
    }

    #[test]
    fn a_trace_dropped_half_way_is_valid() {
        let mut file = Vec::new();
        let mut trace = ChromeTrace::new(&mut file).unwrap();
        trace.event(&event("a")).unwrap();
        trace.event(&event("b")).unwrap();
        drop(trace);
        assert_eq!(parsed(&file).len(), 2);
    }

    #[test]
    fn a_time_that_is_not_finite_is_refused_and_spoils_nothing() {
        let mut file = Vec::new();
        let mut trace = ChromeTrace::new(&mut file).unwrap();
        trace.event(&event("a")).unwrap();
        let error = trace.event(&TraceEvent { duration_us: f64::NAN, ..event("b") }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        trace.finish().unwrap();
        assert_eq!(parsed(&file).len(), 1);
    }

    /// A disk that is full after `left` bytes.
    struct Full {
        left: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        let error = write_chrome(Full { left: 60 }, [], [event("a")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
