//! The report for a terminal: at most 60 lines, aligned, without colour.
//!
//! Long lists are cut with a line that says by how much; the page and `--json` have all.

use super::Report;
use super::amount::{bytes, count, seconds, signed_percent, times};
use super::caption::{self, seating};
use super::compare::{LinkVersus, StageVersus, Versus};

const MOST_EMULATED: usize = 4;
const MOST_STAGES: usize = 12;
const MOST_LINKS: usize = 16;
const MOST_EVENTS: usize = 6;

/// The report for a terminal: at most 60 lines, without colour.
pub fn render_text(report: &Report) -> String {
    let mut lines = vec![report.info.name.clone()];
    lines.extend(caption::result(report).into_iter().map(|sentence| format!("  {sentence}")));
    let emulated = report.info.emulated.iter().map(|part| format!("  EMULATED  {part}")).collect();
    lines.extend(cut(emulated, MOST_EMULATED));
    lines.extend(caption::not_comparable(report).or(caption::pace_held(report)).map(|s| format!("  {s}")));
    for table in [overall(report), stages(report), links(report), events(report)] {
        if !table.is_empty() {
            lines.push(String::new());
            lines.extend(table);
        }
    }
    lines.join("\n") + "\n"
}

fn overall(report: &Report) -> Vec<String> {
    let c = &report.comparison;
    let row = |name: &str, v: &Versus, show: fn(Option<f64>) -> String| {
        [name.to_owned(), show(v.predicted), show(v.measured), signed_percent(v.error_percent())]
    };
    let mut rows = vec![row("step", &c.iteration_s, seconds)];
    rows.push(row("tokens/s", &c.tokens_per_s, count));
    let validation = report.steps.iter().rev().find_map(|s| Some((s.step, s.validation_loss?)));
    let mut table = align(["", "predicted", "measured", "error"], rows);
    table.extend(validation.map(|(step, loss)| format!("validation loss {loss:.3} after step {step}")));
    table
}

fn stages(report: &Report) -> Vec<String> {
    let row = |s: &StageVersus| {
        let seat = seating(&report.plan, s.rank);
        [
            s.rank.to_string(),
            format!("{}, {}", seat.role, seat.place),
            seconds(s.busy_s.predicted),
            seconds(s.busy_s.measured),
            signed_percent(s.busy_s.error_percent()),
            bytes(s.memory_bytes.predicted),
            bytes(s.memory_bytes.measured),
        ]
    };
    let rows = report.comparison.stages.iter().map(row).collect();
    let header = ["rank", "busy per step", "predicted", "measured", "error", "memory pred.", "memory meas."];
    cut_table(align(header, rows), MOST_STAGES)
}

fn links(report: &Report) -> Vec<String> {
    let row = |l: &LinkVersus| {
        [
            format!("{} > {}", l.from, l.to),
            caption::carries(l.carries),
            bytes(l.wire_bytes.predicted),
            bytes(l.codec_bytes),
            bytes(l.wire_bytes.measured),
            signed_percent(l.wire_bytes.error_percent()),
            bytes(l.dense_bytes),
            times(l.fewer()),
        ]
    };
    let rows = report.comparison.links.iter().map(row).collect();
    let header = ["link", "bytes per step", "predicted", "codec", "wire", "error", "dense f32", "fewer"];
    cut_table(align(header, rows), MOST_LINKS)
}

fn events(report: &Report) -> Vec<String> {
    let event = |e: &super::files::RunEvent| format!("{:>9.2} s  step {:<5} {}", e.time_s, e.step, e.text);
    let skipped = report.events.len().saturating_sub(MOST_EVENTS);
    let before = (skipped > 0).then(|| format!("  ({skipped} earlier events)"));
    before.into_iter().chain(report.events[skipped..].iter().map(event)).collect()
}

/// Pads columns to their widest cell: the first two to the left, figures to the right.
fn align<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> Vec<String> {
    let header = header.map(str::to_owned);
    let all = || std::iter::once(&header).chain(&rows);
    let widths: Vec<usize> =
        (0..N).map(|i| all().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let words = if N > 4 { 2 } else { 1 };
    all()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i < words {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            });
            format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
        })
        .collect()
}

fn cut_table(mut table: Vec<String>, most_rows: usize) -> Vec<String> {
    let rows = table.split_off(1);
    if rows.is_empty() {
        return rows;
    }
    table.extend(cut(rows, most_rows));
    table
}

fn cut(mut lines: Vec<String>, most: usize) -> Vec<String> {
    let left_out = lines.len().saturating_sub(most);
    if left_out > 0 {
        lines.truncate(most);
        lines.push(format!("  ({left_out} more: --html or --json)"));
    }
    lines
}
