//! Round numbers along an axis.

/// Multiples of 1, 2 or 5 times a power of ten within `[low, high]`, about `about` of them.
pub fn ticks(low: f64, high: f64, about: f64) -> Vec<f64> {
    let step = round_step((high - low) / about);
    if !(step.is_finite() && step > 0.0) {
        return Vec::new();
    }
    let (first, last) = ((low / step).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// The next of 1, 2, 5, 10, … times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= least * (1.0 - 1e-9)).unwrap_or(10.0);
    factor * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0, 5.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(2.2, 5.6, 4.0), [3.0, 4.0, 5.0]);
        assert!(ticks(1.0, 1.0, 4.0).is_empty());
        assert!(ticks(0.0, f64::NAN, 4.0).is_empty());
    }
}
