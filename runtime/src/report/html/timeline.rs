//! The pipeline as predicted, above the pipeline as it ran, on one axis: a lane a rank, a bar an action.
//!
//! Drawn are a step without and a step with an exchange: the steady steps nearest the median. Measured steps start at
//! their first action; ranks are not in lockstep, so lanes may begin late.

use std::fmt::Write;

use narrows_planner::schedule::{Action, Payload};

use super::axis::ticks;
use super::markup::{self, Percent, Text, legend};
use crate::report::amount::seconds;
use crate::report::caption::seating;
use crate::report::files::PredictedEvent;
use crate::report::{MeasuredStep, Report};

const HEADING: &str = "Pipeline";
/// Bars narrower than this share of the axis carry no number until zoomed.
const NUMBERED: f64 = 0.022;

/// Both kinds of step; a radio button chooses.
pub fn section(report: &Report) -> String {
    let timeline = &report.predicted.timeline;
    let kinds = [
        ("a step without exchange", &timeline.plain, report.plain_step.as_ref()),
        ("a step with exchange", &timeline.exchange, report.exchange_step.as_ref()),
    ];
    let drawn: Vec<_> = kinds.into_iter().filter(|(_, p, m)| !p.is_empty() || m.is_some()).collect();
    if drawn.is_empty() {
        return markup::figure("timeline", HEADING, "", "<p class=\"empty\">No step is traced yet.</p>\n");
    }
    let mut content = String::from("<div class=\"tabs\">\n");
    for (i, (name, ..)) in drawn.iter().enumerate() {
        let checked = if i == 0 { " checked" } else { "" };
        let _ = writeln!(
            content,
            "<input type=\"radio\" name=\"step-kind\" id=\"step-kind-{i}\"{checked}>\
             <label for=\"step-kind-{i}\">{name}</label>"
        );
    }
    content += &legend(&[
        ("f", "forward"),
        ("b", "backward, input"),
        ("w", "backward, weights"),
        ("r", "waiting"),
        ("s", "send"),
        ("d", "reduce"),
        ("x", "exchange"),
        ("o", "optimiser"),
    ]);
    drawn
        .iter()
        .for_each(|(name, predicted, measured)| content += &panel(report, name, predicted, *measured));
    content += "</div>\n";
    markup::figure(
        "timeline",
        HEADING,
        "Each lane: predicted above, measured below, on one axis. Drag to zoom, double-click to see all; with the \
         keyboard + and - zoom, arrows move, 0 shows all.",
        &content,
    )
}

fn panel(
    report: &Report,
    name: &str,
    predicted: &[PredictedEvent],
    measured: Option<&MeasuredStep>,
) -> String {
    let lanes: Vec<Lane> = (0..report.plan.world_size()).map(|r| Lane::of(r, predicted, measured)).collect();
    let span = lanes.iter().flat_map(|l| l.bars()).fold(0.0f64, |end, bar| end.max(bar.end_s));
    let which = measured.map_or_else(|| "not measured".into(), |m| format!("measured: step {}", m.step));
    let mut html = format!(
        "<div class=\"panel\" data-span=\"{span}\">\n<p class=\"which\">{name} · {which}\
         <span class=\"zoom\"><button data-zoom=\"in\" aria-label=\"Zoom in\">+</button>\
         <button data-zoom=\"out\" aria-label=\"Zoom out\">−</button>\
         <button data-zoom=\"all\">all</button></span></p>\n\
         <div class=\"lanes\" tabindex=\"0\" role=\"group\" aria-label=\"Timeline of {name}\">\n"
    );
    lanes.iter().for_each(|lane| html += &lane.render(report, span));
    html + &axis(span) + "</div>\n</div>\n"
}

struct Lane {
    rank: u32,
    predicted: Vec<Bar>,
    measured: Vec<Bar>,
}

struct Bar {
    action: Action,
    start_s: f64,
    end_s: f64,
}

impl Lane {
    fn of(rank: u32, predicted: &[PredictedEvent], measured: Option<&MeasuredStep>) -> Self {
        let foreseen = predicted.iter().filter(|e| e.rank == rank);
        let begin_s = measured
            .map_or(0.0, |m| m.events.iter().flatten().map(|e| e.start_s).fold(f64::INFINITY, f64::min));
        let found = measured.and_then(|m| m.events.get(rank as usize)).into_iter().flatten();
        Self {
            rank,
            predicted: foreseen
                .map(|e| Bar { action: e.action, start_s: e.start_s, end_s: e.end_s })
                .collect(),
            measured: found
                .map(|e| Bar { action: e.action, start_s: e.start_s - begin_s, end_s: e.end_s - begin_s })
                .collect(),
        }
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.predicted.iter().chain(&self.measured)
    }

    fn render(&self, report: &Report, span_s: f64) -> String {
        let seat = seating(&report.plan, self.rank);
        let replica = report.plan.seats().get(self.rank as usize).map_or(0, |s| s.replica % 6);
        let draw =
            |bars: &[Bar], y, height| bars.iter().map(|b| b.render(span_s, y, height)).collect::<String>();
        format!(
            "<div class=\"lane replica-{replica}\"><div class=\"who\"><b>{rank}</b> <span>{role}</span> \
             <span>{place}</span></div>\n<svg class=\"bars\" role=\"img\" \
             aria-label=\"{rank}, {role}: {n} predicted and {m} measured actions\" width=\"100%\" height=\"40\">\n\
             <g class=\"predicted\">{predicted}</g>\n<g class=\"measured\">{measured}</g></svg></div>\n",
            rank = seat.rank,
            role = Text(&seat.role),
            place = Text(&seat.place),
            n = self.predicted.len(),
            m = self.measured.len(),
            predicted = draw(&self.predicted, 3, 14),
            measured = draw(&self.measured, 20, 17),
        )
    }
}

impl Bar {
    fn render(&self, span_s: f64, y: u32, height: u32) -> String {
        let (class, name) = (class(&self.action), name(&self.action));
        let (x, width) = (self.start_s / span_s, (self.end_s - self.start_s) / span_s);
        let (y, height) = if class == "s" { (y + height - 4, 4) } else { (y, height) };
        let mut svg = format!(
            "<rect class=\"{class}\" x=\"{}\" width=\"{}\" y=\"{y}\" height=\"{height}\" rx=\"1\" data-do=\"{name}\" \
             data-s=\"{:.7}\" data-e=\"{:.7}\"/>",
            Percent(x),
            Percent(width),
            self.start_s,
            self.end_s
        );
        if let Some(microbatch) = computes(&self.action) {
            let hidden = if width < NUMBERED { " visibility=\"hidden\"" } else { "" };
            let (x, y) = (Percent(x + width / 2.0), y + height / 2 + 4);
            let _ = write!(svg, "<text x=\"{x}\" y=\"{y}\"{hidden}>{microbatch}</text>");
        }
        svg
    }
}

fn axis(span_s: f64) -> String {
    let tick = |t: f64| {
        let x = Percent(t / span_s);
        format!("<text class=\"below\" x=\"{x}\" y=\"14\">{}</text>", seconds(Some(t)).replace("0 s", "0"))
    };
    let ticks: String = ticks(0.0, span_s, 6.0).into_iter().map(tick).collect();
    format!(
        "<div class=\"lane\"><div class=\"who\"></div><svg class=\"time\" height=\"22\" width=\"100%\" aria-hidden=\"true\">{ticks}</svg></div>\n"
    )
}

fn computes(action: &Action) -> Option<u32> {
    match *action {
        Action::Forward { microbatch, .. }
        | Action::BackwardInput { microbatch, .. }
        | Action::BackwardWeight { microbatch, .. } => Some(microbatch),
        _ => None,
    }
}

fn class(action: &Action) -> &'static str {
    match action {
        Action::Receive { .. } => "r",
        Action::Forward { .. } => "f",
        Action::Send { .. } => "s",
        Action::BackwardInput { .. } => "b",
        Action::BackwardWeight { .. } => "w",
        Action::Reduce => "d",
        Action::Step => "o",
        Action::Exchange => "x",
    }
}

fn name(action: &Action) -> String {
    let payload = |what| match what {
        Payload::Activation => "activation",
        Payload::Gradient => "gradient",
    };
    match *action {
        Action::Receive { from, what, microbatch, .. } => {
            format!("wait for {} {microbatch} from rank {from}", payload(what))
        }
        Action::Forward { microbatch, .. } => format!("forward {microbatch}"),
        Action::Send { to, what, microbatch, .. } => {
            format!("send {} {microbatch} to rank {to}", payload(what))
        }
        Action::BackwardInput { microbatch, .. } => format!("backward (input) {microbatch}"),
        Action::BackwardWeight { microbatch, .. } => format!("backward (weights) {microbatch}"),
        Action::Reduce => "reduce gradients".into(),
        Action::Step => "optimiser step".into(),
        Action::Exchange => "exchange".into(),
    }
}
