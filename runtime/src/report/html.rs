//! The report as one page: no file, font or script but its own, readable in light and dark and at phone width.
//!
//! ```text
//!   header: the result in a sentence, what is emulated, four figures
//!   loss · timeline · placement · traffic      inline SVG, one module each
//!   tables                                     every figure that a picture shows, and the events
//! ```
//! Horizontal positions are percentages of the drawing, so pictures fit any width while text keeps its size; the script
//! only adds hover and zoom. A Content-Security-Policy forbids the page to load anything. All text from the run is
//! escaped ([`markup::Text`]).
//!
//! Not here: what the figures mean (`compare`), words shared with the terminal (`caption`).

use self::markup::Text;
use super::Report;
use super::amount::{bytes, count, seconds, signed_percent, times};
use super::caption;
use super::compare::Versus;

mod axis;
mod loss;
mod markup;
mod placement;
mod tables;
mod timeline;
mod traffic;

/// The report as one page that needs nothing but a browser.
pub fn render_html(report: &Report) -> String {
    let body = [
        header(report),
        loss::figure(report),
        timeline::section(report),
        placement::figure(report),
        traffic::figure(report),
        tables::comparison(report),
        tables::events(report),
        footer(report),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{title} · Narrows</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <div id=\"tip\" role=\"status\" hidden></div>\n<script>\n{js}</script>\n</body>\n</html>\n",
        title = Text(&report.info.name),
        css = include_str!("html/page.css"),
        js = include_str!("html/page.js"),
    )
}

fn header(report: &Report) -> String {
    format!(
        "<header>\n<p class=\"kicker\">Narrows · a run, predicted beside measured</p>\n<h1>{}{}</h1>\n\
         <p class=\"result\">{}</p>\n{}{}{}</header>\n",
        Text(&report.info.name),
        if report.info.emulated.is_empty() { "" } else { " <span class=\"pill\">emulated</span>" },
        Text(caption::result(report).join(" ")),
        caption::not_comparable(report)
            .map(|why| format!("<p class=\"warning\" role=\"alert\">{}</p>\n", Text(why)))
            .unwrap_or_default(),
        emulated(report),
        key_figures(report),
    )
}

fn emulated(report: &Report) -> String {
    if report.info.emulated.is_empty() {
        return String::new();
    }
    let parts = report.info.emulated.iter().cloned().chain(caption::pace_held(report));
    let items: String = parts.map(|part| format!("<li>{}</li>", Text(part))).collect();
    format!("<ul class=\"emulated\" aria-label=\"What is emulated\">{items}</ul>\n")
}

fn key_figures(report: &Report) -> String {
    let c = &report.comparison;
    let foreseen = |v: &Versus, show: fn(Option<f64>) -> String| match v.error_percent() {
        Some(error) => format!("{} predicted, {}", show(v.predicted), signed_percent(Some(error))),
        None => format!("{} predicted", show(v.predicted)),
    };
    let validation = report.steps.iter().rev().find_map(|s| s.validation_loss);
    let loss = report.steps.last().map_or_else(|| "-".into(), |s| format!("{:.3}", s.loss));
    let (wire, fewer) = match caption::bytes_between_hosts(report) {
        Some((dense, wire)) => {
            let fewer = format!("{} as dense f32, {} fewer", bytes(Some(dense)), times(Some(dense / wire)));
            (bytes(Some(wire)), fewer)
        }
        None => ("-".into(), "not measured".into()),
    };
    let figures = [
        ("step", seconds(c.iteration_s.measured), foreseen(&c.iteration_s, seconds)),
        ("tokens per second", count(c.tokens_per_s.measured), foreseen(&c.tokens_per_s, count)),
        ("loss", loss, validation.map_or_else(String::new, |v| format!("{v:.3} on validation"))),
        ("bytes per step between hosts", wire, fewer),
    ];
    let tile = |(name, value, note): (&str, String, String)| {
        format!("<div><dt>{name}</dt><dd><b>{}</b><span>{}</span></dd></div>\n", Text(value), Text(note))
    };
    format!("<dl class=\"figures\">\n{}</dl>\n", figures.map(tile).concat())
}

fn footer(report: &Report) -> String {
    let model = &report.plan.model;
    format!(
        "<footer><p>{} layers, width {}, {} heads, vocabulary {}, sequences of {} tokens; {} tokens a step; \
         micro-batch {}; seed {}. Steady figures: medians without the first tenth of the steps, {} steps without \
         and {} with an exchange.</p></footer>\n",
        model.layers,
        model.hidden,
        model.heads,
        model.vocab,
        model.sequence,
        report.info.tokens_per_step,
        report.plan.micro_batch,
        report.info.seed,
        report.comparison.steady_plain_steps,
        report.comparison.steady_exchange_steps,
    )
}
