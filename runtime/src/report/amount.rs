//! Amounts for people: three significant digits and a unit.
//!
//! Not here: amounts for machines (`--json` gives SI numbers).

/// `480 ms`, `1.50 s`; a dash where there is none.
pub fn seconds(value: Option<f64>) -> String {
    value.map_or_else(none, |s| scaled(s, "s", 1e-6))
}

/// `80.0 GB`, decimal.
pub fn bytes(value: Option<f64>) -> String {
    value.map_or_else(none, |b| scaled(b, "B", 1.0))
}

/// `25.0 Gbit/s` of a rate in bytes per second.
pub fn rate(bytes_per_s: f64) -> String {
    scaled(bytes_per_s * 8.0, "bit/s", 1.0)
}

/// `1.05 M`, `980`.
pub fn count(value: f64) -> String {
    scaled(value, "", 1.0).trim_end().to_owned()
}

/// `+3.1 %`, always with its sign.
pub fn signed_percent(value: Option<f64>) -> String {
    value.map_or_else(none, |p| format!("{p:+.1} %"))
}

/// `41x`: how many times fewer; `1.02x`.
pub fn times(value: Option<f64>) -> String {
    value.map_or_else(none, |t| if t < 9.95 { format!("{t:.2}x") } else { format!("{t:.0}x") })
}

fn none() -> String {
    "-".to_owned()
}

/// `value` with the prefix that leaves one to three digits before the point, no prefix below `smallest`.
fn scaled(value: f64, unit: &str, smallest: f64) -> String {
    const PREFIXES: [(f64, &str); 7] =
        [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u")];
    if value == 0.0 || !value.is_finite() {
        return format!("{value} {unit}");
    }
    // 999.5 already prints as 1000 in three digits: it takes the next prefix.
    let fits = |&&(scale, _): &&(f64, &str)| scale >= smallest && value.abs() >= 0.9995 * scale;
    let floor = PREFIXES.iter().rfind(|(scale, _)| *scale >= smallest).unwrap_or(&(1.0, ""));
    let (scale, prefix) = PREFIXES.iter().find(fits).unwrap_or(floor);
    let scaled = value / scale;
    let decimals = match scaled.abs() {
        x if x < 9.995 => 2,
        x if x < 99.95 => 1,
        _ => 0,
    };
    let decimals = if unit.is_empty() && *scale == 1.0 && value.fract() == 0.0 { 0 } else { decimals };
    format!("{scaled:.decimals$} {prefix}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_people_write_them() {
        assert_eq!(seconds(Some(0.41249)), "412 ms");
        assert_eq!(seconds(Some(0.9999)), "1.00 s");
        assert_eq!(seconds(Some(3e-9)), "0.00 us");
        assert_eq!(seconds(None), "-");
        assert_eq!(bytes(Some(80e9)), "80.0 GB");
        assert_eq!(bytes(Some(0.25)), "0.25 B");
        assert_eq!(rate(3.125e9), "25.0 Gbit/s");
        assert_eq!(count(983_040.0), "983 k");
        assert_eq!(count(64.0), "64");
        assert_eq!(signed_percent(Some(-3.14)), "-3.1 %");
        assert_eq!(times(Some(41.2)), "41x");
    }
}
