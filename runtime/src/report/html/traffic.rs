//! Bytes per step over each link: as dense f32, by the codecs' account, at the socket. Logarithmic: ratios are lengths.
//!
//! Both directions of a pair are one link here. Drawn are the [`MOST_LINKS`] that carry most; the table has all, each
//! direction by itself.

use std::collections::BTreeMap;

use super::markup::{self, Percent, Text, legend};
use crate::report::Report;
use crate::report::amount::{bytes, times};
use crate::report::caption::{carries, seating};
use crate::report::compare::{Carries, LinkVersus};

const HEADING: &str = "Bytes per link";
const MOST_LINKS: usize = 16;

/// The bars.
pub fn figure(report: &Report) -> String {
    let mut links: Vec<_> =
        pairs(&report.comparison.links).into_iter().filter(|l| l.wire > Some(0.0)).collect();
    links.sort_by(|a, b| b.most().total_cmp(&a.most()));
    links.truncate(MOST_LINKS);
    let Some(scale) = Scale::of(&links) else {
        let empty = "<p class=\"empty\">Nothing was sent, or no steady step has counted it yet.</p>\n";
        return markup::figure("traffic", HEADING, "", empty);
    };
    let rows: String = links.iter().map(|link| row(report, link, &scale)).collect();
    let classes = [
        ("dense", "dense f32 at the same steps"),
        ("codec", "codec's account"),
        ("on-wire", "at the socket"),
    ];
    let content = format!("{}<div class=\"traffic\">\n{rows}{}</div>\n", legend(&classes), scale.axis());
    let caption = "Bytes per step, both directions together, exchange amortised; logarithmic: a grid line is ten times \
                   the one before.";
    markup::figure("traffic", HEADING, caption, &content)
}

/// Bytes per step between two ranks, both directions together.
struct Pair {
    ranks: [u32; 2],
    carries: Carries,
    dense: Option<f64>,
    codec: Option<f64>,
    wire: Option<f64>,
}

impl Pair {
    fn most(&self) -> f64 {
        self.dense.into_iter().chain(self.wire).fold(0.0, f64::max)
    }

    fn add(&mut self, link: &LinkVersus) {
        let sum = |a: &mut Option<f64>, b: Option<f64>| *a = a.zip(b).map(|(a, b)| a + b).or(*a).or(b);
        sum(&mut self.dense, link.dense_bytes);
        sum(&mut self.codec, link.codec_bytes);
        sum(&mut self.wire, link.wire_bytes.measured);
    }
}

fn pairs(links: &[LinkVersus]) -> Vec<Pair> {
    let mut pairs = BTreeMap::new();
    for link in links {
        let ranks = [link.from.min(link.to), link.from.max(link.to)];
        let empty = Pair { ranks, carries: link.carries, dense: None, codec: None, wire: None };
        pairs.entry(ranks).or_insert(empty).add(link);
    }
    pairs.into_values().collect()
}

/// Decades `[first, last]`, so that the least bar still has a length.
struct Scale {
    first: i32,
    last: i32,
}

impl Scale {
    fn of(links: &[Pair]) -> Option<Self> {
        let figures = links.iter().flat_map(|l| [l.dense, l.codec, l.wire]);
        let logs = figures.flatten().filter(|&b| b > 0.0).map(f64::log10);
        let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), l| (low.min(l), high.max(l)));
        (low <= high).then(|| Self { first: low.ceil() as i32 - 1, last: high.ceil() as i32 })
    }

    fn at(&self, bytes: f64) -> f64 {
        let share = (bytes.log10() - f64::from(self.first)) / f64::from((self.last - self.first).max(1));
        share.clamp(0.0, 1.0)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.first..=self.last).map(|d| 10f64.powi(d))
    }

    fn axis(&self) -> String {
        let label = |b: f64| format!("<text x=\"{}\" y=\"14\">{}</text>", Percent(self.at(b)), short(b));
        let labels: String = self.decades().map(label).collect();
        format!(
            "<div class=\"link\"><div></div><svg class=\"decades\" height=\"22\" width=\"100%\" aria-hidden=\"true\">{labels}</svg></div>\n"
        )
    }
}

/// `10 kB`, without decimals.
fn short(decade: f64) -> String {
    bytes(Some(decade)).replace(".00", "").replace(".0", "")
}

fn row(report: &Report, link: &Pair, scale: &Scale) -> String {
    let [a, b] = link.ranks;
    let place = |rank| seating(&report.plan, rank).place;
    let bars =
        [("dense", "dense f32", link.dense), ("codec", "codec", link.codec), ("on-wire", "wire", link.wire)];
    let grid = scale.decades().map(|b| {
        let x = Percent(scale.at(b));
        format!("<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"100%\"/>")
    });
    let drawn = bars.iter().enumerate().map(|(i, (class, name, figure))| bar(scale, i, class, name, *figure));
    let fewer = match link.dense.zip(link.wire).map(|(dense, wire)| dense / wire) {
        Some(ratio) if ratio > 1.01 => format!("{} fewer", times(Some(ratio))),
        Some(_) => "as many as dense".into(),
        None => String::new(),
    };
    format!(
        "<div class=\"link\"><div class=\"who\"><b>{a} ↔ {b}</b> <span>{} ↔ {}</span> <span>{}</span> \
         <span>{fewer}</span></div>\n\
         <svg class=\"amounts\" role=\"img\" aria-label=\"{}\" width=\"100%\" height=\"58\">{}{}</svg></div>\n",
        Text(place(a)),
        Text(place(b)),
        carries(link.carries),
        bars.map(|(_, name, figure)| format!("{name} {}", bytes(figure))).join(", "),
        grid.collect::<String>(),
        drawn.collect::<String>(),
    )
}

/// A bar and its amount: behind it, or inside its end where there is no room.
fn bar(scale: &Scale, index: usize, class: &str, name: &str, figure: Option<f64>) -> String {
    let Some(amount) = figure.filter(|&b| b > 0.0) else { return String::new() };
    let (share, y) = (scale.at(amount), 3 + index * 18);
    let inside = share > 0.6;
    let (anchor, dx) = if inside { ("inside", -6) } else { ("outside", 6) };
    format!(
        "<rect class=\"{class}\" x=\"0\" width=\"{width}\" y=\"{y}\" height=\"15\" rx=\"2\" \
         data-tip=\"{name}: {amount:.0} bytes per step\"/>\
         <text class=\"{anchor} {class}-text\" x=\"{width}\" dx=\"{dx}\" y=\"{}\">{}</text>",
        y + 12,
        bytes(Some(amount)),
        width = Percent(share),
    )
}
