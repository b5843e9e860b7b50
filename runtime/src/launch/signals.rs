//! The signals a launcher lives by: SIGCHLD to reap, SIGINT, SIGTERM and SIGHUP to stop.
//!
//! A stop signal that was ignored when the program began stays ignored: that is how `nohup` and background jobs of
//! scripts ask to be left alone, and a handler would undo it.

use std::fs;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What woke the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// A child ended, perhaps several.
    Child,
    /// The user, or whatever runs the launcher, wants an end.
    Stop(i32),
}

#[derive(Debug)]
pub(super) struct Signals {
    child: Signal,
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// Needs a tokio runtime around it.
    pub fn install() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let unless_ignored = |kind: SignalKind| {
            if ignores(&status, kind.as_raw_value()) { Ok(None) } else { signal(kind).map(Some) }
        };
        Ok(Self {
            child: signal(SignalKind::child())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            terminate: unless_ignored(SignalKind::terminate())?,
            hangup: unless_ignored(SignalKind::hangup())?,
        })
    }

    pub async fn next(&mut self) -> Wake {
        tokio::select! {
            Some(()) = self.child.recv() => Wake::Child,
            () = received(&mut self.interrupt) => Wake::Stop(SignalKind::interrupt().as_raw_value()),
            () = received(&mut self.terminate) => Wake::Stop(SignalKind::terminate().as_raw_value()),
            () = received(&mut self.hangup) => Wake::Stop(SignalKind::hangup().as_raw_value()),
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    let came = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if came.is_none() {
        std::future::pending().await
    }
}

/// Reads the mask of ignored signals in the text of /proc/self/status (bit n-1 for signal n, hexadecimal).
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        // What `grep SigIgn /proc/self/status` shows under nohup, and in a Rust program (SIGPIPE).
        let nohup = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000006\n";
        assert!(ignores(nohup, 1));
        assert!(ignores(nohup, 13));
        assert!(!ignores(nohup, 2));
        assert!(!ignores("", 1));
    }
}
