//! How the threads of a stage share its work: rows in bands, bands among lanes.
//!
//! A lane is a thread; the caller's own is one of them, so one lane means no other thread at all. A step is a few dozen
//! parallel phases, each over bands of rows that no two jobs share. What a row becomes does not depend on its band:
//! bands are whole [`ROW_BLOCK`]s, at least [`MIN_ROWS`] high, and sums over rows go by `ROW_BLOCK` first. So any number
//! of lanes gives the same bits, and a phase too small to be worth a second thread may stay on one.
//!
//! Not here: which rows (`block`, `head`), the arithmetic.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;

/// Rows whose contributions to a sum over rows are added first, in order.
pub(super) const ROW_BLOCK: usize = 32;
/// The lowest band: below, the product kernel may sum in another order (`matrix`).
const MIN_ROWS: usize = 64;
/// Arithmetic below which handing a band to another thread costs more than it saves: about 80 µs of it, where waking
/// a thread takes 10 to 50.
const MIN_FLOPS: usize = 1 << 23;

/// The threads of a stage.
pub(super) struct Lanes {
    helpers: Option<rayon::ThreadPool>,
    count: usize,
}

/// A division of rows into bands.
pub(super) struct Bands(Vec<Range<usize>>);

impl Lanes {
    /// `threads` lanes: the caller and `threads - 1` helpers.
    pub fn new(threads: NonZero<usize>) -> Self {
        let count = threads.get();
        let pool = || {
            rayon::ThreadPoolBuilder::new()
                .num_threads(count - 1)
                .thread_name(|i| format!("engine-{}", i + 1))
                .build()
                .expect("the system gives a stage its threads")
        };
        Self { helpers: (count > 1).then(pool), count }
    }

    /// How many lanes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Into how many shares `items` of equal size, which take `flops` in all, are best divided.
    pub fn shares(&self, items: usize, flops: usize) -> usize {
        self.count.min(items).min(flops / MIN_FLOPS).max(1)
    }

    /// Divides `rows`, which take `flops` of arithmetic in all: one band a lane, fewer where there is little to do.
    pub fn bands(&self, rows: usize, flops: usize) -> Bands {
        let count = self.shares(rows / MIN_ROWS, flops);
        let blocks = rows / ROW_BLOCK;
        let start = |band: usize| if band == count { rows } else { band * blocks / count * ROW_BLOCK };
        Bands((0..count).map(|band| start(band)..start(band + 1)).collect())
    }

    /// Does every job once, on as many lanes as there are jobs.
    pub fn run<T: Send>(&self, jobs: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
        let jobs: Vec<T> = jobs.into_iter().collect();
        let helpers = self.count.min(jobs.len()).saturating_sub(1);
        let Some(pool) = self.helpers.as_ref().filter(|_| helpers > 0) else {
            return jobs.into_iter().for_each(work);
        };
        let queue = Mutex::new(jobs.into_iter());
        let next = || queue.lock().expect("no job is taken by a thread that panicked").next();
        let drain = || {
            while let Some(job) = next() {
                work(job);
            }
        };
        pool.in_place_scope(|scope| {
            (0..helpers).for_each(|_| scope.spawn(|_| drain()));
            drain();
        });
    }
}

impl Bands {
    /// All in one band.
    pub fn whole(rows: usize) -> Self {
        Bands(std::iter::once(0..rows).collect())
    }

    /// The rows of each band.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.0.iter().cloned()
    }

    /// Cuts `data`, rows of `width` elements, into bands.
    pub fn of<'a>(&self, data: &'a mut [f32], width: usize) -> impl Iterator<Item = &'a mut [f32]> {
        cut(data, self.0.iter().map(move |rows| rows.len() * width))
    }

    /// Cuts `data`, which has `width` elements for each [`ROW_BLOCK`] begun, into bands.
    pub fn blocks_of<'a>(&self, data: &'a mut [f32], width: usize) -> impl Iterator<Item = &'a mut [f32]> {
        cut(data, self.0.iter().map(move |rows| rows.len().div_ceil(ROW_BLOCK) * width))
    }
}

fn cut(data: &mut [f32], lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = &mut [f32]> {
    lengths.scan(data, |rest, length| rest.split_off_mut(..length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(count: usize) -> Lanes {
        Lanes::new(NonZero::new(count).unwrap())
    }

    #[test]
    fn bands_cover_all_rows_in_whole_blocks_and_none_is_low() {
        for (count, rows) in [(1, 5), (2, 130), (3, 200), (7, 1024), (16, 1000), (2, 127)] {
            let bands = lanes(count).bands(rows, usize::MAX).0;
            assert_eq!((bands[0].start, bands.last().unwrap().end), (0, rows));
            assert!(bands.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(bands.iter().all(|band| band.start % ROW_BLOCK == 0));
            assert!(bands.len() == 1 || bands.iter().all(|band| band.len() >= MIN_ROWS), "{bands:?}");
        }
    }

    #[test]
    fn little_work_stays_on_one_lane() {
        assert_eq!(lanes(4).bands(4096, MIN_FLOPS).0.len(), 1);
        assert_eq!(lanes(4).bands(4096, 3 * MIN_FLOPS).0.len(), 3);
    }

    #[test]
    fn every_job_is_done_once_on_any_number_of_lanes() {
        for count in [1, 2, 3] {
            let mut done = vec![0.0; 100];
            lanes(count).run(done.iter_mut(), |x| *x += 1.0);
            assert_eq!(done, [1.0; 100]);
        }
    }
}
