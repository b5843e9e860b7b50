//! Figures that may be absent, for people: a dash where there is none.
//!
//! Not here: units and digits (`narrows_planner::units`), figures for machines (`--json` gives SI numbers).

use narrows_planner::units::{human_bytes, human_time};

/// `480 ms`, `1.50 s`.
pub fn seconds(value: Option<f64>) -> String {
    shown(value, human_time)
}

/// `80.0 GB`, decimal.
pub fn bytes(value: Option<f64>) -> String {
    shown(value, |b| human_bytes(b.round() as u64))
}

/// `8.87 k`, `980`.
pub fn count(value: Option<f64>) -> String {
    shown(value, |n| match n {
        n if n >= 999.5e6 => format!("{:.2} G", n / 1e9),
        n if n >= 999.5e3 => format!("{:.2} M", n / 1e6),
        n if n >= 9_995.0 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    })
}

/// `+3.1 %`, always with its sign.
pub fn signed_percent(value: Option<f64>) -> String {
    shown(value, |p| format!("{p:+.1} %"))
}

/// `41x`: how many times fewer.
pub fn times(value: Option<f64>) -> String {
    shown(value, |t| if t < 9.95 { format!("{t:.2}x") } else { format!("{t:.0}x") })
}

fn shown(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!(seconds(Some(0.41249)), "412 ms");
        assert_eq!(seconds(None), "-");
        assert_eq!(bytes(Some(80e9)), "80.0 GB");
        assert_eq!(count(Some(983_040.0)), "983.0 k");
        assert_eq!(count(Some(999_700.0)), "1.00 M");
        assert_eq!(count(Some(8870.2)), "8870");
        assert_eq!(signed_percent(Some(-3.14)), "-3.1 %");
        assert_eq!(times(Some(41.2)), "41x");
    }
}
