//! One atomic 64-bit time per resource, in a file that all ranks of a machine map.
//!
//! ```text
//!   byte 8 i .. 8 i + 8   next_free[i], nanoseconds of CLOCK_MONOTONIC, native order
//! ```
//!
//! A new file is zeros: every resource free since the machine started. A rank that dies leaves nothing locked: there is
//! no lock, each reservation is one compare-and-swap.
//!
//! Limits: the file must not shrink while mapped (the kernel would send SIGBUS), and must not outlive a reboot, after
//! which the clock starts again.
#![allow(unsafe_code)]

use memmap2::MmapRaw;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The times at which shared resources are next free.
#[derive(Debug)]
pub struct SharedClock {
    map: MmapRaw,
    resources: usize,
}

const TIME_BYTES: usize = size_of::<AtomicU64>();

impl SharedClock {
    /// Maps `path` for `resources` times; makes it, all zero, if absent. Fails where the file has another size: then
    /// it belongs to another spec.
    pub fn open(path: &Path, resources: usize) -> io::Result<Self> {
        // Never empty: an empty file cannot be mapped.
        let expected = (resources.max(1) * TIME_BYTES) as u64;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let got = file.metadata()?.len();
        if got != 0 && got != expected {
            let what = format!("it has {got} bytes, expected {expected} ({resources} resources)");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        file.set_len(expected)?;
        Ok(SharedClock { map: MmapRaw::map_raw(&file)?, resources })
    }

    /// Queues for `resource`: starts at `at_ns` or when it is next free, whichever is later, and holds it for
    /// `busy_ns`. Returns the start.
    pub fn reserve(&self, resource: usize, at_ns: u64, busy_ns: u64) -> u64 {
        let next_free = self.next_free(resource);
        let mut free_ns = next_free.load(Ordering::Relaxed);
        loop {
            let start_ns = at_ns.max(free_ns);
            // Relaxed: the time is the whole message, nothing else is published with it.
            let end_ns = start_ns.saturating_add(busy_ns);
            match next_free.compare_exchange_weak(free_ns, end_ns, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return start_ns,
                Err(seen_ns) => free_ns = seen_ns,
            }
        }
    }

    fn next_free(&self, resource: usize) -> &AtomicU64 {
        assert!(
            resource < self.resources,
            "resource {resource} of {}: routes are checked on opening",
            self.resources
        );
        // SAFETY: the map is page-aligned, at least resources * 8 bytes long (`open`), and lives as long as `self`; the
        // index is checked above. Every process reads and writes these bytes through atomics only, and any bits are a
        // valid u64.
        unsafe { &*self.map.as_mut_ptr().cast::<AtomicU64>().add(resource) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::thread;

    /// Takes far longer than a time slice, so that takers meet in the middle of a reservation even on one core.
    const TURNS: u64 = 2_000_000;

    #[test]
    fn threads_that_share_a_resource_lose_no_reservation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clocks");
        let take_turns = || {
            let clock = SharedClock::open(&path, 2).unwrap();
            let starts = (0..TURNS).map(|_| clock.reserve(1, 0, 10));
            assert!(starts.is_sorted_by(|earlier, later| earlier + 10 <= *later));
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(take_turns))));
        let clock = SharedClock::open(&path, 2).unwrap();
        assert_eq!(clock.reserve(1, 0, 0), 4 * 10 * TURNS);
        assert_eq!(clock.reserve(0, 0, 0), 0, "the other resource was left alone");
    }

    const CHILD_PATH: &str = "NARROWS_TEST_CLOCK_FILE";

    #[test]
    fn two_processes_share_a_resource() {
        if let Some(path) = std::env::var_os(CHILD_PATH) {
            let clock = SharedClock::open(Path::new(&path), 1).unwrap();
            for _ in 0..TURNS {
                clock.reserve(0, 0, 10);
            }
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clocks");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shape::shared_clock::tests::two_processes_share_a_resource"])
            .env(CHILD_PATH, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let clock = SharedClock::open(&path, 1).unwrap();
        for _ in 0..TURNS {
            clock.reserve(0, 0, 10);
        }
        assert!(child.wait().unwrap().success());
        assert_eq!(clock.reserve(0, 0, 10), 20 * TURNS, "each process held it for 10 ns a turn");
    }

    #[test]
    fn a_file_of_another_spec_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clocks");
        SharedClock::open(&path, 3).unwrap();
        assert!(SharedClock::open(&path, 2).unwrap_err().to_string().contains("24 bytes, expected 16"));
    }
}
