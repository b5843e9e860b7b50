//! Quantities with units, as people write them in `cluster.toml` and as reports print them.
//!
//! ```text
//!   quantity := number [space] [prefix] unit      "200Gbit/s"  "80 GiB"  "1.5ms"  "312TFLOP/s"  "2.10USD/h"
//!
//!   rate      bit/s B/s         k M G T (powers of 1000), Ki Mi Gi Ti (powers of 1024)
//!   size      B                 the same prefixes: 80GB is 80e9 bytes, 80GiB is 80 * 2^30
//!   time      s ms us µs ns min h
//!   compute   FLOP/s            k M G T P E
//!   price     USD/h; of traffic USD/B with the prefixes of sizes
//! ```
//! Units are spelled in one way only: `Gb/s` could be bits or bytes, so it is refused, not guessed. Inside the
//! program every quantity is SI (bytes, bytes per second, seconds, FLOP per second).
//!
//! Not here: whether a quantity makes sense where it stands (a rate of zero): its reader says so.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Visitor};

/// Bytes per second.
pub type Rate = Quantity<RateUnit>;
/// Bytes, whole.
pub type Size = Quantity<SizeUnit>;
/// Seconds.
pub type Time = Quantity<TimeUnit>;
/// Floating-point operations per second.
pub type Compute = Quantity<ComputeUnit>;
/// US dollars per hour.
pub type Price = Quantity<PriceUnit>;
/// US dollars per byte.
pub type TrafficPrice = Quantity<TrafficPriceUnit>;

/// A finite number, not negative, in the SI unit of its kind `U`; read from text with [`FromStr`] or serde.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Quantity<U> {
    si: f64,
    kind: PhantomData<U>,
}

impl<U> Quantity<U> {
    /// The value in the SI unit of its kind: bytes/s, bytes, seconds, FLOP/s; dollars per hour or per byte for a price.
    pub fn si(self) -> f64 {
        self.si
    }
}

impl Size {
    /// The size as a whole number of bytes; sizes below 2^53 bytes are exact.
    pub fn bytes(self) -> u64 {
        self.si.round() as u64
    }
}

/// A kind of quantity: what it is called, an example of it and the units it is written in.
pub trait Unit {
    /// With its article: "a rate".
    const NAME: &'static str;
    /// One that parses: `200Gbit/s`.
    const EXAMPLE: &'static str;
    /// Every spelling and what it is worth in the SI unit.
    const SPELLINGS: &'static [(&'static str, f64)];
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, $example:literal, $spellings:expr;)*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
        pub struct $kind;
        impl Unit for $kind {
            const NAME: &'static str = $name;
            const EXAMPLE: &'static str = $example;
            const SPELLINGS: &'static [(&'static str, f64)] = $spellings;
        })*
        /// The name of the kind that writes a unit so, to tell someone what they wrote instead.
        fn kind_of(spelling: &str) -> Option<&'static str> {
            $(if $kind::SPELLINGS.iter().any(|(known, _)| *known == spelling) {
                return Some($kind::NAME);
            })*
            None
        }
    };
}

const KI: f64 = 1024.0;

kinds! {
    /// Of [`Rate`].
    RateUnit = "a rate", "200Gbit/s", &[
        ("bit/s", 0.125), ("kbit/s", 125.0), ("Mbit/s", 125e3), ("Gbit/s", 125e6), ("Tbit/s", 125e9),
        ("B/s", 1.0), ("kB/s", 1e3), ("MB/s", 1e6), ("GB/s", 1e9), ("TB/s", 1e12),
        ("KiB/s", KI), ("MiB/s", KI * KI), ("GiB/s", KI * KI * KI), ("TiB/s", KI * KI * KI * KI),
    ];
    /// Of [`Size`].
    SizeUnit = "a size", "80GB", &[
        ("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12),
        ("KiB", KI), ("MiB", KI * KI), ("GiB", KI * KI * KI), ("TiB", KI * KI * KI * KI),
    ];
    /// Of [`Time`].
    TimeUnit = "a time", "1.5ms", &[
        ("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("min", 60.0), ("h", 3600.0),
    ];
    /// Of [`Compute`].
    ComputeUnit = "a compute rate", "312TFLOP/s", &[
        ("FLOP/s", 1.0), ("kFLOP/s", 1e3), ("MFLOP/s", 1e6), ("GFLOP/s", 1e9), ("TFLOP/s", 1e12),
        ("PFLOP/s", 1e15), ("EFLOP/s", 1e18),
    ];
    /// Of [`Price`].
    PriceUnit = "a price", "2.10USD/h", &[("USD/h", 1.0)];
    /// Of [`TrafficPrice`].
    TrafficPriceUnit = "a price of traffic", "0.02USD/GB", &[
        ("USD/B", 1.0), ("USD/kB", 1e-3), ("USD/MB", 1e-6), ("USD/GB", 1e-9), ("USD/TB", 1e-12),
        ("USD/KiB", 1.0 / KI), ("USD/MiB", 1.0 / (KI * KI)), ("USD/GiB", 1.0 / (KI * KI * KI)),
        ("USD/TiB", 1.0 / (KI * KI * KI * KI)),
    ];
}

/// A text that is no quantity of the kind wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found}, expected {expected} such as \"{example}\"")]
pub struct UnitError {
    found: String,
    expected: &'static str,
    example: &'static str,
}

impl<U: Unit> FromStr for Quantity<U> {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = |found: String| UnitError { found, expected: U::NAME, example: U::EXAMPLE };
        let (number, unit) = split(text);
        let Ok(number) = number.parse::<f64>() else {
            return Err(wrong(format!("\"{text}\" does not start with a number")));
        };
        let Some((_, worth)) = U::SPELLINGS.iter().find(|(spelling, _)| *spelling == unit) else {
            return Err(wrong(match kind_of(unit) {
                _ if unit.is_empty() => format!("\"{text}\" has no unit"),
                Some(kind) => format!("\"{text}\" is {kind}"),
                None => format!("\"{unit}\" is not a unit known here"),
            }));
        };
        match number * worth {
            si if si < 0.0 => Err(wrong(format!("\"{text}\" is below zero"))),
            si if !si.is_finite() => Err(wrong(format!("\"{text}\" is too large"))),
            si => Ok(Quantity { si, kind: PhantomData }),
        }
    }
}

/// The number and the unit behind it; an `e` belongs to the number only where an exponent follows.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
    let sign = |at: usize| usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
    let mut end = sign(0) + digits(sign(0));
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let exponent = end + 1 + sign(end + 1);
        let length = digits(exponent.min(bytes.len()));
        end = if length > 0 { exponent + length } else { end };
    }
    (&text[..end], text[end..].trim_start())
}

impl<'de, U: Unit> Deserialize<'de> for Quantity<U> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<U>(PhantomData<U>);
        impl<U: Unit> Visitor<'_> for Text<U> {
            type Value = Quantity<U>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} such as \"{}\"", U::NAME, U::EXAMPLE)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text(PhantomData))
    }
}

/// Bytes for people, three significant digits: `80.0 GB`.
pub fn human_bytes(bytes: u64) -> String {
    scaled(bytes as f64, "B", 1.0)
}

/// A rate in bytes per second for people, in bits as networks are sold: `25.0 Gbit/s`.
pub fn human_rate(bytes_per_s: f64) -> String {
    scaled(bytes_per_s * 8.0, "bit/s", 1.0)
}

/// A compute rate for people: `312 TFLOP/s`.
pub fn human_compute(flops_per_s: f64) -> String {
    scaled(flops_per_s, "FLOP/s", 1.0)
}

/// A time in seconds for people: `1.50 ms`, `480 ms`, `12.3 s`; from two minutes on `3 min 20 s`, `2 h 05 min`.
pub fn human_time(seconds: f64) -> String {
    match seconds {
        s if s >= 7200.0 => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
        s if s >= 120.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => scaled(s, "s", 1e-9),
    }
}

/// `value` with the prefix that leaves one to three digits before the point, from `smallest` (a power of 1000) up.
fn scaled(value: f64, unit: &str, smallest: f64) -> String {
    const PREFIXES: [(f64, &str); 10] = [
        (1e-9, "n"),
        (1e-6, "u"),
        (1e-3, "m"),
        (1.0, ""),
        (1e3, "k"),
        (1e6, "M"),
        (1e9, "G"),
        (1e12, "T"),
        (1e15, "P"),
        (1e18, "E"),
    ];
    if value == 0.0 || !value.is_finite() {
        return format!("{value} {unit}");
    }
    // 999.5 already prints as 1000 in three digits: it takes the next prefix.
    let (scale, prefix) = PREFIXES
        .into_iter()
        .filter(|(scale, _)| *scale >= smallest)
        .rev()
        .find(|(scale, _)| value.abs() >= 0.9995 * scale)
        .unwrap_or((smallest, if smallest < 1.0 { "n" } else { "" }));
    let scaled = value / scale;
    let decimals = match scaled.abs() {
        x if x < 9.995 => 2,
        x if x < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$} {prefix}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn si<U: Unit>(text: &str) -> f64 {
        text.parse::<Quantity<U>>().unwrap_or_else(|e| panic!("{e}")).si()
    }

    fn refused<U: Unit>(text: &str) -> String {
        match text.parse::<Quantity<U>>() {
            Ok(got) => panic!("{text} was read as {}", got.si),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn quantities_are_read_into_si_units() {
        assert_eq!(si::<RateUnit>("200Gbit/s"), 25e9);
        assert_eq!(si::<RateUnit>("3GB/s"), 3e9);
        assert_eq!(si::<RateUnit>("1 MiB/s"), 1048576.0);
        assert_eq!(si::<SizeUnit>("80GB"), 80e9);
        assert_eq!("80GiB".parse::<Size>().unwrap().bytes(), 80 << 30);
        assert_eq!(si::<TimeUnit>("1.5ms"), 1.5e-3);
        assert_eq!(si::<TimeUnit>("40 ms"), 40.0 * 1e-3);
        assert_eq!(si::<TimeUnit>("5us"), si::<TimeUnit>("5µs"));
        assert_eq!(si::<TimeUnit>("2e-3s"), 2e-3);
        assert_eq!(si::<ComputeUnit>("312TFLOP/s"), 312e12);
        assert_eq!(si::<ComputeUnit>("1EFLOP/s"), 1e18, "E is exa, not an exponent");
        assert_eq!(si::<PriceUnit>("2.10USD/h"), 2.10);
    }

    #[test]
    fn what_is_no_quantity_says_what_was_expected_with_an_example() {
        let rate = |found: &str| format!("{found}, expected a rate such as \"200Gbit/s\"");
        assert_eq!(refused::<RateUnit>("80GB"), rate("\"80GB\" is a size"));
        assert_eq!(refused::<RateUnit>("25"), rate("\"25\" has no unit"));
        assert_eq!(refused::<RateUnit>("25Gb/s"), rate("\"Gb/s\" is not a unit known here"));
        assert_eq!(refused::<RateUnit>("fast"), rate("\"fast\" does not start with a number"));
        assert_eq!(refused::<RateUnit>("-1Gbit/s"), rate("\"-1Gbit/s\" is below zero"));
        assert_eq!(refused::<RateUnit>("1e999B/s"), rate("\"1e999B/s\" is too large"));
        assert_eq!(refused::<RateUnit>(""), rate("\"\" does not start with a number"));
        assert_eq!(refused::<RateUnit>("1.2.3B/s"), rate("\"1.2.3B/s\" does not start with a number"));
        assert_eq!(
            refused::<TimeUnit>("5Gbit/s"),
            "\"5Gbit/s\" is a rate, expected a time such as \"1.5ms\""
        );
    }

    #[test]
    fn every_spelling_and_every_example_reads_back() {
        fn all<U: Unit>() {
            si::<U>(U::EXAMPLE);
            for (spelling, worth) in U::SPELLINGS {
                assert_eq!(si::<U>(&format!("2{spelling}")), 2.0 * worth);
            }
        }
        all::<RateUnit>();
        all::<SizeUnit>();
        all::<TimeUnit>();
        all::<ComputeUnit>();
        all::<PriceUnit>();
    }

    #[test]
    fn quantities_print_with_three_digits() {
        assert_eq!(human_bytes(80_000_000_000), "80.0 GB");
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(999_499), "999 kB");
        assert_eq!(human_bytes(999_500), "1.00 MB");
        assert_eq!(human_rate(3.125e9), "25.0 Gbit/s");
        assert_eq!(human_compute(312e12), "312 TFLOP/s");
        assert_eq!(human_time(0.48), "480 ms");
        assert_eq!(human_time(1.5e-3), "1.50 ms");
        assert_eq!(human_time(9.996e-3), "10.0 ms");
        assert_eq!(human_time(3e-12), "0.00 ns");
        assert_eq!(human_time(12.34), "12.3 s");
        assert_eq!(human_time(200.0), "3 min 20 s");
        assert_eq!(human_time(7500.0), "2 h 05 min");
    }
}
