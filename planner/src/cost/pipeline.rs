//! Seconds of one replica's microbatches through its pipeline under 1F1B, sends never blocking compute.
//!
//! ```text
//!   T(m) = fill + (m - 1) beat
//!   fill = sum t_i + 2 sum e_i                       the first microbatch, down and back up
//!   beat = max over runs i..j of stages  (t_i + .. + t_j + 2 (e_i + .. + e_j-1)) / (j - i + 1),  and  max o_i
//! ```
//! t_i forward and backward of stage i, e_i one crossing of boundary i (occupancy + latency), o_i its occupancy. Stage
//! i keeps one microbatch more in flight than stage i + 1, so a run of n stages turns n microbatches around in one
//! trip down and back: the cycle of the dependence graph with the largest mean sets the pace. A run of one is the slowest
//! stage; a run over a slow boundary is why 1F1B does not hide it.
//! Source: 1F1B of Narayanan et al., arXiv 2104.04473; maximum cycle mean of its event graph. Worked: t = 3, 3;
//! e = 1: fill 8, beat (3 + 3 + 2) / 2 = 4, T(4) = 20.
//!
//! Limits: with unlike stages T(m) errs by less than one fill (the test bounds it); shared links: `simulate`.

/// One crossing of a boundary, one way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// Bytes over rate: how long it keeps the route busy.
    pub occupancy_s: f64,
    /// One way, on top.
    pub latency_s: f64,
}

impl Crossing {
    /// So many crossings as if they were one.
    pub fn repeated(self, times: u32) -> Self {
        let times = f64::from(times);
        Self { occupancy_s: times * self.occupancy_s, latency_s: times * self.latency_s }
    }

    /// Sender's start to receiver's end.
    pub fn delay_s(self) -> f64 {
        self.occupancy_s + self.latency_s
    }
}

/// Seconds of the first microbatch, down and back up.
pub fn fill_s(stages_s: &[f64], crossings: &[Crossing]) -> f64 {
    stages_s.iter().sum::<f64>() + 2.0 * crossings.iter().map(|c| c.delay_s()).sum::<f64>()
}

/// Seconds between microbatches in the steady state.
pub fn beat_s(stages_s: &[f64], crossings: &[Crossing]) -> f64 {
    let mut beat = crossings.iter().map(|c| c.occupancy_s).fold(0.0, f64::max);
    for first in 0..stages_s.len() {
        let mut sum = 0.0;
        for last in first..stages_s.len() {
            sum += stages_s[last] + if last > first { 2.0 * crossings[last - 1].delay_s() } else { 0.0 };
            beat = beat.max(sum / (last - first + 1) as f64);
        }
    }
    beat
}

/// Microbatches (the parts of a rank's chunks together) that rank `rank` of `ranks` holds when so many pass.
///
/// 1F1B: min(m, p - i). Interleaved in v chunks: those of Megatron-LM's warm-up, (2 (p - i - 1) + (v - 1) p + 1) / v.
pub fn held(microbatches: u32, ranks: u32, chunks: u32, rank: u32) -> u32 {
    let held = match chunks {
        1 => ranks - rank,
        v => (2 * (ranks - rank - 1) + (v - 1) * ranks + 1).div_ceil(v),
    };
    held.min(microbatches)
}

/// Seconds of `microbatches` through the pipeline.
pub fn pipeline_s(microbatches: u32, fill_s: f64, beat_s: f64) -> f64 {
    fill_s + f64::from(microbatches - 1) * beat_s
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn crossing(delay_s: f64) -> Crossing {
        Crossing { occupancy_s: delay_s, latency_s: 0.0 }
    }

    #[test]
    fn the_headers_worked_number() {
        let (t, e) = ([3.0, 3.0], [crossing(1.0)]);
        assert_eq!((fill_s(&t, &e), beat_s(&t, &e)), (8.0, 4.0));
        assert_eq!(pipeline_s(4, 8.0, 4.0), 20.0);
    }

    #[test]
    fn a_busy_link_sets_the_beat_of_many_stages() {
        let t = [1.0; 3];
        assert_eq!(beat_s(&t, &[crossing(0.0); 2]), 1.0);
        let lopsided = [crossing(0.0), Crossing { occupancy_s: 9.0, latency_s: 0.0 }];
        assert_eq!(beat_s(&t, &lopsided), 10.0, "a run of two over the slow boundary");
    }

    /// 1F1B executed action by action: when is the last backward of stage 0 done?
    fn executed_s(t: &[f64], e: &[f64], m: usize) -> f64 {
        let p = t.len();
        let order = |i: usize| {
            let warm = (p - i - 1).min(m);
            let forwards = (0..warm).map(|k| (true, k));
            let steady = (warm..m).flat_map(move |k| [(true, k), (false, k - warm)]);
            forwards.chain(steady).chain((m - warm..m).map(|k| (false, k))).collect::<Vec<_>>()
        };
        let orders: Vec<_> = (0..p).map(order).collect();
        let (mut next, mut free) = (vec![0; p], vec![0.0f64; p]);
        let mut done = vec![[vec![f64::NAN; m], vec![f64::NAN; m]]; p];
        while next.iter().zip(&orders).any(|(&n, o)| n < o.len()) {
            for i in 0..p {
                while let Some(&(forward, k)) = orders[i].get(next[i]) {
                    let ready = match forward {
                        true if i == 0 => 0.0,
                        true => done[i - 1][0][k] + e[i - 1],
                        false if i == p - 1 => done[i][0][k],
                        false => done[i + 1][1][k] + e[i],
                    };
                    if ready.is_nan() {
                        break;
                    }
                    let cost = if forward { t[i] / 3.0 } else { t[i] * 2.0 / 3.0 };
                    free[i] = free[i].max(ready) + cost;
                    done[i][usize::from(!forward)][k] = free[i];
                    next[i] += 1;
                }
            }
        }
        done[0][1][m - 1]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_beat_is_that_of_1f1b_executed(
            t in prop::collection::vec(0.1f64..2.0, 1..6),
            e in prop::collection::vec(0.0f64..1.0, 5),
        ) {
            let e = &e[..t.len() - 1];
            // Delays without occupancy: the executed pipeline's links are never busy.
            let crossings: Vec<_> = e.iter().map(|&d| Crossing { occupancy_s: 0.0, latency_s: d }).collect();
            let (fill, beat) = (fill_s(&t, &crossings), beat_s(&t, &crossings));
            // Finite runs may still be on their way to the steady state, never past it; an error that stays below one
            // fill over a thousand microbatches leaves no room for another slope.
            let period = (executed_s(&t, e, 160) - executed_s(&t, e, 100)) / 60.0;
            prop_assert!(period <= beat * (1.0 + 1e-9), "executed {period}, closed form {beat}");
            for m in [1, 2, 5, 40, 1000] {
                let error = pipeline_s(m, fill, beat) - executed_s(&t, e, m as usize);
                prop_assert!(error.abs() <= fill, "{m} microbatches: off by {error} of fill {fill}");
            }
        }
    }
}
