//! The loss curve: training thin, validation as dots, reference losses as dashed lines.
//!
//! A long run is thinned to its extremes in each of [`MOST_POINTS`]` / 2` bins, so that no spike is lost. A loss that
//! is not finite breaks the line.

use std::fmt::Write;

use super::axis::ticks;
use super::markup::{self, Percent, Text, legend};
use crate::report::Report;
use crate::report::files::StepRecord;

const MOST_POINTS: usize = 1000;

/// The curve, or that there is none yet.
pub fn figure(report: &Report) -> String {
    let Some(scale) = Scale::of(report) else {
        return markup::figure("loss", "Loss", "", "<p class=\"empty\">No step is finished yet.</p>\n");
    };
    let points = thinned(&report.steps);
    let content = format!(
        "{legend}<div class=\"plot\" tabindex=\"0\" aria-label=\"Loss curve; arrow keys move along it\">\n\
         <svg role=\"img\" aria-label=\"{label}\" width=\"100%\" height=\"100%\">\n{axes}{references}\
         <svg class=\"stretch\" viewBox=\"0 0 1 1\" preserveAspectRatio=\"none\" width=\"100%\" height=\"100%\">\
         <path class=\"train\" d=\"{path}\"/></svg>\n{dots}\
         <line class=\"cursor\" y1=\"0\" y2=\"100%\" visibility=\"hidden\"/></svg>\n\
         <script type=\"application/json\">{data}</script>\n</div>\n",
        legend = legend(&[("line", "training"), ("dot", "validation")]),
        label = Text(description(report)),
        axes = axes(&scale),
        references = references(report, &scale),
        path = path(&points, &scale),
        dots = dots(&report.steps, &scale),
        data = data(&points, &scale),
    );
    markup::figure("loss", "Loss", "Nats per token by optimiser step.", &content)
}

/// Steps and losses to the unit square, y downwards.
struct Scale {
    steps: [f64; 2],
    losses: [f64; 2],
}

impl Scale {
    fn of(report: &Report) -> Option<Self> {
        let (first, last) = (report.steps.first()?.step as f64, report.steps.last()?.step as f64);
        let losses = report.steps.iter().flat_map(|s| [Some(s.loss), s.validation_loss]).flatten();
        let all = losses.chain(report.info.reference_losses.iter().map(|r| r.loss)).filter(|l| l.is_finite());
        let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), l| (low.min(l), high.max(l)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let margin = ((high - low) * 0.06).max(1e-3);
        Some(Self { steps: [first, last.max(first + 1.0)], losses: [low - margin, high + margin] })
    }

    fn x(&self, step: f64) -> f64 {
        (step - self.steps[0]) / (self.steps[1] - self.steps[0])
    }

    fn y(&self, loss: f64) -> f64 {
        (self.losses[1] - loss) / (self.losses[1] - self.losses[0])
    }
}

fn description(report: &Report) -> String {
    let loss = |s: Option<&StepRecord>| s.map_or(f64::NAN, |s| s.loss);
    let (first, last) = (loss(report.steps.first()), loss(report.steps.last()));
    format!("Training loss falls from {first:.3} to {last:.3} over {} steps", report.steps.len())
        .replace("falls", if last < first { "falls" } else { "goes" })
}

fn axes(scale: &Scale) -> String {
    let mut svg = String::new();
    for loss in ticks(scale.losses[0], scale.losses[1], 5.0) {
        let y = Percent(scale.y(loss));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>\
             <text class=\"left\" x=\"0\" dx=\"-8\" y=\"{y}\" dy=\"4\">{}</text>",
            (loss * 1e6).round() / 1e6
        );
    }
    for step in ticks(scale.steps[0], scale.steps[1], 6.0).into_iter().filter(|s| s.fract() == 0.0) {
        let x = Percent(scale.x(step));
        let _ = writeln!(svg, "<text class=\"below\" x=\"{x}\" y=\"100%\" dy=\"18\">{step}</text>");
    }
    svg
}

fn references(report: &Report, scale: &Scale) -> String {
    let line = |r: &crate::report::files::ReferenceLoss| {
        let y = Percent(scale.y(r.loss));
        format!(
            "<line class=\"reference\" x1=\"0\" x2=\"100%\" y1=\"{y}\" y2=\"{y}\"/>\
             <text class=\"reference\" x=\"100%\" y=\"{y}\" dy=\"-5\">{} {:.3}</text>\n",
            Text(&r.label),
            r.loss
        )
    };
    report.info.reference_losses.iter().filter(|r| r.loss.is_finite()).map(line).collect()
}

fn path(points: &[&StepRecord], scale: &Scale) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    for point in points {
        if point.loss.is_finite() {
            let _ = write!(path, "{pen}{:.5} {:.5}", scale.x(point.step as f64), scale.y(point.loss));
        }
        pen = if point.loss.is_finite() { 'L' } else { 'M' };
    }
    path
}

fn dots(steps: &[StepRecord], scale: &Scale) -> String {
    let measured = steps.iter().filter_map(|s| Some((s.step, s.validation_loss.filter(|l| l.is_finite())?)));
    let dot = |(step, loss): (u64, f64)| {
        let (x, y) = (Percent(scale.x(step as f64)), Percent(scale.y(loss)));
        format!("<circle class=\"validation\" cx=\"{x}\" cy=\"{y}\" r=\"4\"/>\n")
    };
    measured.map(dot).collect()
}

/// `[x, step, loss, validation loss or null, exchange]` of each point, for the cursor.
fn data(points: &[&StepRecord], scale: &Scale) -> String {
    let row = |s: &&StepRecord| (scale.x(s.step as f64), s.step, s.loss, s.validation_loss, s.exchange);
    serde_json::to_string(&points.iter().map(row).collect::<Vec<_>>()).expect("numbers always serialise")
}

/// Lowest and highest loss of each bin, validated steps always.
fn thinned(steps: &[StepRecord]) -> Vec<&StepRecord> {
    if steps.len() <= MOST_POINTS {
        return steps.iter().collect();
    }
    let bin = (2 * steps.len()).div_ceil(MOST_POINTS);
    let mut kept = Vec::new();
    for bin in steps.chunks(bin) {
        let lowest = bin.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).map(|s| s.step);
        let highest = bin.iter().max_by(|a, b| a.loss.total_cmp(&b.loss)).map(|s| s.step);
        let keep = |s: &&StepRecord| s.validation_loss.is_some() || [lowest, highest].contains(&Some(s.step));
        kept.extend(bin.iter().filter(keep));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> StepRecord {
        StepRecord {
            step,
            loss,
            validation_loss: None,
            iteration_s: 1.0,
            tokens: 1,
            exchange: false,
            links: vec![],
            overrun_s: vec![],
            peak_memory_bytes: vec![],
        }
    }

    #[test]
    fn a_long_run_is_thinned_but_keeps_its_spike() {
        let steps: Vec<_> = (0..50_000).map(|i| step(i, if i == 31_234 { 9.0 } else { 2.0 })).collect();
        let kept = thinned(&steps);
        assert!(kept.len() <= MOST_POINTS, "{}", kept.len());
        assert!(kept.iter().any(|s| s.step == 31_234));
        assert!(kept.is_sorted_by_key(|s| s.step));
    }

    #[test]
    fn a_loss_that_is_not_finite_breaks_the_line() {
        let steps = [step(0, 2.0), step(1, f64::NAN), step(2, 1.0), step(3, 1.0)];
        let scale = Scale { steps: [0.0, 4.0], losses: [0.0, 2.0] };
        let path = path(&steps.iter().collect::<Vec<_>>(), &scale);
        assert_eq!(path, "M0.00000 0.00000M0.50000 0.50000L0.75000 0.50000");
    }
}
