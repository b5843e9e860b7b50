//! Measured layer times by profile, GPU, tensor-parallel degree and microbatch size.
//!
//! Between two measured microbatch sizes times are interpolated, beyond them they grow in proportion; another
//! tensor-parallel degree than the measured ones takes the nearest one's times the ratio of degrees.

/// Seconds of the parts of a model over a microbatch, tensor-parallel collectives included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    pub embedding_s: f64,
    pub layer_forward_s: f64,
    pub layer_backward_s: f64,
    pub head_forward_s: f64,
    pub head_backward_s: f64,
}

impl Times {
    fn of(ms: &[f64]) -> Self {
        let at = |i: usize| ms[i] / 1e3;
        Times {
            embedding_s: at(0),
            layer_forward_s: at(1),
            layer_backward_s: at(2),
            head_forward_s: at(3),
            head_backward_s: at(4),
        }
    }

    fn each(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Times {
            embedding_s: f(self.embedding_s, other.embedding_s),
            layer_forward_s: f(self.layer_forward_s, other.layer_forward_s),
            layer_backward_s: f(self.layer_backward_s, other.layer_backward_s),
            head_forward_s: f(self.head_forward_s, other.head_forward_s),
            head_backward_s: f(self.head_backward_s, other.head_backward_s),
        }
    }

    fn scaled(self, by: f64) -> Self {
        self.each(self, |a, _| a * by)
    }
}

/// The times that a profile has for a GPU; `None` where it has none of it.
pub(super) fn times(profile: &str, gpu: &str, tensor: u32, micro_batch: u32) -> Option<Times> {
    let rows = rows().filter(|(name, on, ..)| *name == profile && *on == gpu);
    let rows: Vec<(u32, u32, Times)> = rows.map(|(_, _, t, b, times)| (t, b, times)).collect();
    let degree = rows.iter().map(|r| r.0).min_by_key(|&t| (t.abs_diff(tensor), t))?;
    let mut sizes: Vec<(u32, Times)> = rows.iter().filter(|r| r.0 == degree).map(|r| (r.1, r.2)).collect();
    sizes.sort_by_key(|s| s.0);
    Some(at_size(&sizes, micro_batch).scaled(f64::from(degree) / f64::from(tensor)))
}

fn at_size(sizes: &[(u32, Times)], micro_batch: u32) -> Times {
    let above = sizes.iter().position(|s| s.0 >= micro_batch);
    let ratio = |size: u32| f64::from(micro_batch) / f64::from(size);
    match above {
        Some(0) => sizes[0].1.scaled(ratio(sizes[0].0)),
        Some(i) => {
            let ((b0, t0), (b1, t1)) = (sizes[i - 1], sizes[i]);
            let share = f64::from(micro_batch - b0) / f64::from(b1 - b0);
            t0.each(t1, |a, b| a + share * (b - a))
        }
        None => {
            let (size, times) = sizes[sizes.len() - 1];
            times.scaled(ratio(size))
        }
    }
}

type Row = (&'static str, &'static str, u32, u32, Times);

fn rows() -> impl Iterator<Item = Row> {
    let lines = include_str!("../../measured/profiles.csv").lines().filter(|l| !l.starts_with('#'));
    lines.skip(1).map(|line| {
        let values: Vec<&str> = line.split(',').collect();
        let number = |i: usize| values[i].parse::<f64>().expect("the shipped profiles are well formed");
        let ms: Vec<f64> = (4..9).map(number).collect();
        (values[0], values[1], number(2) as u32, number(3) as u32, Times::of(&ms))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_sizes_are_as_measured_and_others_between_them() {
        let forward = |b| times("opt-350m", "GH200", 4, b).unwrap().layer_forward_s * 1e3;
        assert!((forward(4) - 1.70).abs() < 1e-12 && (forward(8) - 2.68).abs() < 1e-12);
        assert!((forward(6) - 2.19).abs() < 1e-12, "half way");
        assert!((forward(16) - 5.36).abs() < 1e-12, "in proportion");
        let two = times("opt-350m", "GH200", 2, 8).unwrap().layer_forward_s * 1e3;
        assert!((two - 5.36).abs() < 1e-12, "half the GPUs");
        assert_eq!(times("opt-350m", "T4", 4, 8), None);
    }
}
