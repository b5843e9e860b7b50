//! Seconds since the run began, the same on every rank of a machine.

use std::time::Instant;

use narrows_transport::clock::monotonic_ns;

/// Converts this process's instants to the run's seconds.
#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    now: Instant,
    now_s: f64,
}

impl RunClock {
    /// A clock that was zero when the machine's monotonic clock read `began_ns`.
    pub fn since(began_ns: u64) -> Self {
        Self { now: Instant::now(), now_s: (monotonic_ns() as f64 - began_ns as f64) / 1e9 }
    }

    /// Seconds of the run at `instant`.
    pub fn at_s(&self, instant: Instant) -> f64 {
        match instant.checked_duration_since(self.now) {
            Some(later) => self.now_s + later.as_secs_f64(),
            None => self.now_s - (self.now - instant).as_secs_f64(),
        }
    }

    /// Seconds of the run now.
    pub fn now_s(&self) -> f64 {
        self.at_s(Instant::now())
    }
}
