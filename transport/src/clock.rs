//! CLOCK_MONOTONIC in nanoseconds: one time for every process of a machine, never set back.
//!
//! `std::time::Instant` reads the same clock but hides its value; the emulated network needs the value, because ranks
//! of one machine stamp it into frames and into shared memory for each other.
//!
//! Not here: time across machines. Nothing in Narrows compares clocks of two machines.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Now, in nanoseconds since an arbitrary start that all processes of this machine share.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The instant at which [`monotonic_ns`] will read `at_ns`; now, if that is past.
pub fn instant_of(at_ns: u64) -> Instant {
    Instant::now() + Duration::from_nanos(at_ns.saturating_sub(monotonic_ns()))
}

/// What [`monotonic_ns`] will read at `instant`; now, if that is past.
pub fn ns_of(instant: Instant) -> u64 {
    monotonic_ns() + instant.saturating_duration_since(Instant::now()).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_nanoseconds_convert_both_ways() {
        let at_ns = monotonic_ns() + 5_000_000_000;
        let back_ns = ns_of(instant_of(at_ns));
        assert!(back_ns.abs_diff(at_ns) < 1_000_000_000, "{back_ns} is not near {at_ns}");
    }
}
