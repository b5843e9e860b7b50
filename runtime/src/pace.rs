//! An emulated device: real arithmetic, then waiting until the device of the inventory would have finished.
//!
//! The device has a clock of its own, `free_at`: an action that follows another without waiting for a message begins
//! when the device became free, not when this thread woke up, so late wake-ups do not add up. Where the arithmetic
//! takes longer here than there, the excess is counted as overrun; the report then says that its timings are not
//! comparable.
//!
//! Not here: what an action takes on the device (`narrows_planner::cost`), the network (`narrows_transport::shape`).

use std::time::{Duration, Instant};

/// Holds one rank's compute to the rate of its GPU in the inventory, or does not.
pub struct Pace {
    emulated: bool,
    free_at: Instant,
    overrun: Duration,
}

/// When an action began and ended on the device.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Beginning.
    pub start: Instant,
    /// End.
    pub end: Instant,
}

impl Pace {
    /// A device held to the inventory's rates.
    pub fn emulated() -> Self {
        Self { emulated: true, free_at: Instant::now(), overrun: Duration::ZERO }
    }

    /// This machine's own speed.
    pub fn unpaced() -> Self {
        Self { emulated: false, free_at: Instant::now(), overrun: Duration::ZERO }
    }

    /// Runs `compute`, which takes `on_device` on the emulated device, and returns not before the device would.
    pub fn run<T>(&mut self, on_device: Duration, compute: impl FnOnce() -> T) -> (T, Span) {
        if !self.emulated {
            let start = Instant::now();
            let value = compute();
            return (value, Span { start, end: Instant::now() });
        }
        let start = self.free_at;
        let value = compute();
        self.free_at = start + on_device;
        self.settle(Instant::now());
        (value, Span { start, end: self.free_at })
    }

    /// The device sat idle until now: whatever comes next begins no earlier.
    pub fn idle_until_now(&mut self) {
        self.free_at = self.free_at.max(Instant::now());
    }

    /// Time by which arithmetic here exceeded the device's since the last call.
    pub fn take_overrun(&mut self) -> Duration {
        std::mem::take(&mut self.overrun)
    }

    fn settle(&mut self, now: Instant) {
        match self.free_at.checked_duration_since(now) {
            Some(left) if !left.is_zero() => std::thread::sleep(left),
            _ => {
                self.overrun += now - self.free_at;
                self.free_at = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_to_back_actions_take_their_device_time_without_drift() {
        let mut pace = Pace::emulated();
        let first = pace.run(Duration::from_millis(3), || ()).1;
        let mut last = first;
        for _ in 0..9 {
            last = pace.run(Duration::from_millis(3), || ()).1;
        }
        // Exact unless the machine stalled, which is then counted.
        assert_eq!(last.end - first.start, Duration::from_millis(30) + pace.take_overrun());
    }

    #[test]
    fn work_slower_than_the_device_is_counted_as_overrun() {
        let mut pace = Pace::emulated();
        pace.run(Duration::from_millis(1), || std::thread::sleep(Duration::from_millis(5)));
        assert!(pace.take_overrun() >= Duration::from_millis(4));
        assert_eq!(pace.take_overrun(), Duration::ZERO, "taken once");
    }

    #[test]
    fn an_unpaced_device_neither_waits_nor_overruns() {
        let mut pace = Pace::unpaced();
        let (value, span) = pace.run(Duration::from_secs(3600), || 7);
        assert_eq!(value, 7);
        assert!(span.end >= span.start && pace.take_overrun() == Duration::ZERO);
    }
}
