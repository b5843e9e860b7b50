//! Every figure in words and numbers: what the pictures show, memory, and the events.

use super::markup::Text;
use crate::report::Report;
use crate::report::amount::{bytes, count, seconds, signed_percent, times};
use crate::report::caption::{carries, seating};
use crate::report::compare::{LinkVersus, StageVersus, Versus};
use crate::report::files::{EventKind, RunEvent};

/// The step, its stages, its links.
pub fn comparison(report: &Report) -> String {
    format!(
        "<section id=\"comparison\" aria-labelledby=\"comparison-heading\">\n\
         <h2 id=\"comparison-heading\">Predicted beside measured</h2>\n{}{}{}</section>\n",
        overall(report),
        stages(report),
        links(report)
    )
}

fn overall(report: &Report) -> String {
    let c = &report.comparison;
    let mut rows = vec![versus("step, exchange amortised", &c.iteration_s, seconds)];
    if let Some(exchange) = &c.exchange_step_s {
        rows.push(versus("step without exchange", &c.plain_step_s, seconds));
        rows.push(versus("step with exchange", exchange, seconds));
    }
    rows.push(versus("tokens per second", &c.tokens_per_s, count));
    table("The step", &["", "predicted", "measured", "error"], rows)
}

fn versus(name: &str, v: &Versus, show: fn(Option<f64>) -> String) -> Vec<String> {
    vec![name.into(), show(v.predicted), show(v.measured), signed_percent(v.error_percent())]
}

fn stages(report: &Report) -> String {
    let with_memory = report
        .comparison
        .stages
        .iter()
        .any(|s| s.memory_bytes.predicted.is_some() || s.memory_bytes.measured.is_some());
    let row = |s: &StageVersus| {
        let seat = seating(&report.plan, s.rank);
        let mut row = versus(&format!("{}, {}, {}", seat.rank, seat.role, seat.place), &s.busy_s, seconds);
        if with_memory {
            row.extend([bytes(s.memory_bytes.predicted), bytes(s.memory_bytes.measured)]);
        }
        row
    };
    let mut header = vec!["busy per step", "predicted", "measured", "error"];
    if with_memory {
        header.extend(["device memory, predicted", "process memory, measured"]);
    }
    table("Stages", &header, report.comparison.stages.iter().map(row).collect())
}

fn links(report: &Report) -> String {
    let row = |l: &LinkVersus| {
        vec![
            format!("{} → {}, {}", l.from, l.to, carries(l.carries)),
            bytes(l.wire_bytes.predicted),
            bytes(l.codec_bytes),
            bytes(l.wire_bytes.measured),
            signed_percent(l.wire_bytes.error_percent()),
            bytes(l.dense_bytes),
            times(l.fewer()),
        ]
    };
    let header = ["bytes per step", "predicted", "codec", "wire", "error", "dense f32", "fewer"];
    table("Links", &header, report.comparison.links.iter().map(row).collect())
}

/// A table that scrolls by itself where it is wider than the page; the first column names the row.
fn table(caption: &str, header: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let head: String = header.iter().map(|h| format!("<th scope=\"col\">{h}</th>")).collect();
    let body: String = rows
        .into_iter()
        .map(|row| {
            let cells = row.iter().skip(1).map(|cell| format!("<td>{}</td>", Text(cell)));
            format!("<tr><th scope=\"row\">{}</th>{}</tr>\n", Text(&row[0]), cells.collect::<String>())
        })
        .collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table>\n\
         <thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
}

/// What happened besides steps.
pub fn events(report: &Report) -> String {
    if report.events.is_empty() {
        return String::new();
    }
    let items: String = report.events.iter().map(event).collect();
    format!(
        "<section id=\"events\" aria-labelledby=\"events-heading\">\n<h2 id=\"events-heading\">Events</h2>\n\
         <ol class=\"events\">\n{items}</ol>\n</section>\n"
    )
}

fn event(event: &RunEvent) -> String {
    let (class, kind) = match event.kind {
        EventKind::Checkpoint => ("checkpoint", "checkpoint"),
        EventKind::ExchangeVerified => ("verified", "exchange verified"),
        EventKind::Resume => ("resume", "resume"),
        EventKind::Failure => ("failure", "failure"),
    };
    format!(
        "<li class=\"{class}\"><span>{:.1} s</span><span>step {}</span><b>{kind}</b> <span>{}</span></li>\n",
        event.time_s,
        event.step,
        Text(&event.text)
    )
}
