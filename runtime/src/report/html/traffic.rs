//! Bytes per step over each link: as dense f32, by the codecs' account, at the socket. Logarithmic: ratios are lengths.
//!
//! Drawn are the [`MOST_LINKS`] that carry most; the table has all.

use super::markup::{self, Percent, Text, legend};
use crate::report::Report;
use crate::report::amount::{bytes, times};
use crate::report::caption::{carries, seating};
use crate::report::compare::LinkVersus;

const MOST_LINKS: usize = 16;

/// The bars.
pub fn figure(report: &Report) -> String {
    let mut links: Vec<_> =
        report.comparison.links.iter().filter(|l| l.wire_bytes.measured.is_some_and(|b| b > 0.0)).collect();
    links.sort_by(|a, b| most(b).total_cmp(&most(a)));
    links.truncate(MOST_LINKS);
    let Some(scale) = Scale::of(&links) else {
        let empty = "<p class=\"empty\">Nothing was sent, or no steady step has counted it yet.</p>\n";
        return markup::figure("traffic", "Bytes per link", "", empty);
    };
    let rows: String = links.iter().map(|link| row(report, link, &scale)).collect();
    let content = format!(
        "{}<div class=\"traffic\">\n{rows}{}</div>\n",
        legend(&[("dense", "dense f32 at the same steps"), ("codec", "codec's account"), ("on-wire", "at the socket")]),
        scale.axis()
    );
    let caption = "Bytes per step, exchange amortised, on a logarithmic scale: a bar's tenfold is one grid line.";
    markup::figure("traffic", "Bytes per link", caption, &content)
}

fn most(link: &LinkVersus) -> f64 {
    link.dense_bytes.into_iter().chain(link.wire_bytes.measured).fold(0.0, f64::max)
}

/// Decades `[first, last]`, so that the least bar still has a length.
struct Scale {
    first: i32,
    last: i32,
}

impl Scale {
    fn of(links: &[&LinkVersus]) -> Option<Self> {
        let figures = links.iter().flat_map(|l| [l.dense_bytes, l.codec_bytes, l.wire_bytes.measured]);
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
        let label = |b: f64| format!("<text class=\"below\" x=\"{}\" y=\"14\">{}</text>", Percent(self.at(b)), short(b));
        let labels: String = self.decades().map(label).collect();
        format!("<div class=\"link\"><div></div><svg class=\"decades\" height=\"22\" width=\"100%\" aria-hidden=\"true\">{labels}</svg></div>\n")
    }
}

/// `10 kB`, without decimals.
fn short(decade: f64) -> String {
    bytes(Some(decade)).replace(".00", "").replace(".0", "")
}

fn row(report: &Report, link: &LinkVersus, scale: &Scale) -> String {
    let place = |rank| seating(&report.plan, rank).place;
    let bars = [
        ("dense", "dense f32", link.dense_bytes),
        ("codec", "codec", link.codec_bytes),
        ("on-wire", "wire", link.wire_bytes.measured),
    ];
    let grid = scale.decades().map(|b| {
        let x = Percent(scale.at(b));
        format!("<line class=\"grid\" x1=\"{x}\" x2=\"{x}\" y1=\"0\" y2=\"100%\"/>")
    });
    let drawn = bars.iter().enumerate().map(|(i, (class, name, figure))| bar(scale, i, class, name, *figure));
    let fewer = link.fewer().map_or_else(String::new, |f| format!(" · {} fewer", times(Some(f))));
    format!(
        "<div class=\"link\"><div class=\"who\"><b>{} → {}</b> <span>{} → {}</span> <span>{}{fewer}</span></div>\n\
         <svg class=\"amounts\" role=\"img\" aria-label=\"{}\" width=\"100%\" height=\"58\">{}{}</svg></div>\n",
        link.from,
        link.to,
        Text(place(link.from)),
        Text(place(link.to)),
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
