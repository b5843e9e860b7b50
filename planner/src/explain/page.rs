//! The explanation as one page: no file, font or script but its own, readable in light and dark and at phone width.
//!
//! ```text
//!   header · placement · timeline (of the simulation) · time by part · memory by stage · runners-up · worth · proof
//! ```
//! Horizontal positions are percentages of the drawing, so pictures fit any width while text keeps its size. A
//! Content-Security-Policy forbids the page to load or run anything; hover texts are the browser's own. Text from the plan
//! is escaped. Large plans show the first ranks of each unlike replica and say how many more are like them.
//!
//! Not here: a run's report (the runtime's).

use std::fmt::{self, Display, Formatter, Write};

use super::runner_up::Outcome;
use super::shadow::By;
use super::words::{cluster_by_host, exchange, gigabytes, layers, memory_by_host, nic_class, plural, time};
use super::{Explanation, placement, text};
use crate::plan::{Plan, Seat};
use crate::schedule::{Action, Event};
use crate::simulate::Simulation;

/// Lanes of the timeline and rows of the memory picture.
const ROWS_MAX: usize = 48;
/// Rectangles of a lane: beyond it neighbours are not to be told apart.
const EVENTS_MAX: usize = 1_200;

/// The page; `simulation` is that of the plan.
pub fn page(plan: &Plan, explanation: &Explanation, simulation: &Simulation) -> String {
    let body = [
        header(plan, explanation, simulation),
        placed(plan, explanation),
        timeline(plan, simulation),
        parts(explanation),
        memory(plan, explanation),
        runners_up(plan, explanation),
        worth(explanation),
        proof(plan, explanation),
        footer(plan),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         img-src data:\">\n<link rel=\"icon\" href=\"data:,\">\n<title>Why this plan · Narrows</title>\n\
         <style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        css = include_str!("page.css"),
    )
}

fn header(plan: &Plan, explanation: &Explanation, simulation: &Simulation) -> String {
    let predicted = simulation.predicted(plan);
    let proof = plan.solver.as_ref().map_or(("not searched".into(), "a plan written by hand".into()), |s| {
        (format!("{:.2} %", 100.0 * s.gap), format!("no plan takes less than {}", time(s.bound_s)))
    });
    let all: u32 = super::gpus_of(plan);
    let figures: [(&str, String, String); 4] = [
        (
            "step, simulated",
            time(simulation.iteration_s),
            format!("{} by the closed form", time(explanation.cost.iteration_s)),
        ),
        (
            "tokens per second",
            format!("{:.0}", predicted.tokens_per_s),
            plural(plan.replicas.len(), "replica"),
        ),
        ("GPUs used", plan.world_size().to_string(), format!("of {all}")),
        ("gap", proof.0, proof.1),
    ];
    let tile = |(name, value, note): (&str, String, String)| {
        format!("<div><dt>{name}</dt><dd><b>{}</b><span>{}</span></dd></div>\n", Text(value), Text(note))
    };
    format!(
        "<header>\n<p class=\"kicker\">Narrows · a plan explained</p>\n<h1>Why this plan</h1>\n\
         <p class=\"result\">What sets the pace: {}.</p>\n<dl class=\"figures\">\n{}</dl>\n</header>\n",
        Text(text::bottleneck_text(plan, explanation)),
        figures.map(tile).concat()
    )
}

fn placed(plan: &Plan, explanation: &Explanation) -> String {
    let rows = placement::rows(plan);
    let cluster = |(index, fabric): (usize, &crate::inventory::Fabric)| {
        let mine = rows.iter().filter(|r| r.cluster == index).take(ROWS_MAX).map(host);
        let idle = explanation.idle.iter().filter(|i| i.cluster == fabric.name);
        let idle = idle.map(|i| {
            let count = plural(i.gpus as usize, "GPU");
            format!("<p class=\"idle\">{count} idle: {}</p>\n", Text(i.reason))
        });
        format!(
            "<div class=\"cluster\"><h3>{}</h3><p>{} of {} × {}, {}</p>\n{}{}</div>\n",
            Text(&fabric.name),
            plural(fabric.hosts.len(), "host"),
            fabric.gpus,
            Text(&fabric.gpu.name),
            nic_class(fabric.nic.class),
            mine.collect::<String>(),
            idle.collect::<String>()
        )
    };
    let exchanges: Vec<String> = plan
        .exchange
        .iter()
        .map(|e| format!("{}: {}", plural(e.replicas.len(), "replica"), exchange(e)))
        .collect();
    let mut exchanges = exchanges;
    exchanges.dedup();
    let exchanges = if exchanges.is_empty() { "nothing is exchanged".into() } else { exchanges.join("; ") };
    let clusters: String = plan.cluster.clusters.iter().enumerate().map(cluster).collect();
    let caption = format!(
        "A0 is stage 0 of replica A; hosts that look alike share a row. Exchange: {}.",
        Text(exchanges)
    );
    figure("placement", "Placement", &caption, &clusters)
}

fn host(row: &placement::Row<'_>) -> String {
    let name = match row.count {
        1 => row.hosts[0].to_owned(),
        n => format!("{} … {} ({n})", row.hosts[0], row.hosts[1]),
    };
    let gpu = |cell: &Option<(usize, usize)>| match cell {
        Some((replica, stage)) => {
            format!("<b class=\"gpu replica-{}\">{}{stage}</b>", replica % 6, placement::letters(*replica))
        }
        None => "<b class=\"gpu\" title=\"idle\">–</b>".to_owned(),
    };
    format!(
        "<div class=\"host\"><span>{}</span>{}</div>\n",
        Text(name),
        row.cells.iter().map(gpu).collect::<String>()
    )
}

fn timeline(plan: &Plan, simulation: &Simulation) -> String {
    let first_s = simulation.timeline.iter().map(|e| e.start_s).fold(f64::INFINITY, f64::min);
    let end_s = simulation.timeline.iter().map(|e| e.end_s).fold(0.0, f64::max);
    let mut lanes = String::new();
    let mut drawn = 0;
    // One rank of a tensor-parallel group stands for it, one replica for its twins: those alone have events.
    for seat in plan.seats() {
        let stage = &plan.replicas[seat.replica].stages[seat.stage];
        if stage.ranks[0].rank != seat.placement.rank || drawn == ROWS_MAX {
            continue;
        }
        let events: Vec<&Event> =
            simulation.timeline.iter().filter(|e| e.rank == seat.placement.rank).collect();
        if events.is_empty() {
            continue;
        }
        drawn += 1;
        lanes += &lane(&seat, &events, [first_s, (end_s - first_s).max(f64::MIN_POSITIVE)]);
    }
    let legend = "<ul class=\"legend\"><li><i class=\"f\"></i>forward</li><li><i class=\"b\"></i>input gradient</li>\
                  <li><i class=\"w\"></i>weight gradient</li><li><i class=\"d\"></i>reduce</li>\
                  <li><i class=\"x\"></i>exchange</li><li><i class=\"o\"></i>optimiser step</li></ul>\n";
    let caption = format!(
        "One usual step as simulated, {} from end to end; one rank of each stage. Replicas that behave alike are \
         drawn once.",
        time(end_s - first_s)
    );
    figure("timeline", "Timeline", &caption, &format!("{legend}<div class=\"lanes\">\n{lanes}</div>\n"))
}

fn lane(seat: &Seat<'_>, events: &[&Event], [first_s, span_s]: [f64; 2]) -> String {
    let mut bars = String::new();
    for event in events.iter().filter(|e| class(e.action).is_some()).take(EVENTS_MAX) {
        let (x, width) = ((event.start_s - first_s) / span_s, (event.end_s - event.start_s) / span_s);
        let microbatch = event.action.microbatch().map_or(String::new(), |m| format!(" {m}"));
        let _ = write!(
            bars,
            "<rect class=\"{}\" x=\"{}\" width=\"{}\" height=\"18\"><title>{}{microbatch}, {}</title></rect>",
            class(event.action).unwrap_or_default(),
            Percent(x),
            Percent(width),
            event.action.name().replace('_', " "),
            time(event.end_s - event.start_s)
        );
    }
    format!(
        "<div class=\"lane replica-{}\"><span>{}{} · {}:{}</span><svg height=\"18\" role=\"img\" \
         aria-label=\"replica {} stage {}\">{bars}</svg></div>\n",
        seat.replica % 6,
        placement::letters(seat.replica),
        seat.stage,
        Text(&seat.placement.host),
        seat.placement.gpu,
        seat.replica,
        seat.stage,
    )
}

fn class(action: Action) -> Option<&'static str> {
    match action {
        Action::Forward { .. } => Some("f"),
        Action::BackwardInput { .. } => Some("b"),
        Action::BackwardWeight { .. } => Some("w"),
        Action::Reduce => Some("d"),
        Action::Exchange => Some("x"),
        Action::Step => Some("o"),
        Action::Receive { .. } | Action::Send { .. } => None,
    }
}

fn parts(explanation: &Explanation) -> String {
    let (parts, whole_s) = (&explanation.parts, explanation.cost.iteration_s);
    let rows = [
        ("compute", parts.compute_s),
        ("fill and drain", parts.fill_s),
        ("boundaries", parts.boundary_s),
        ("shared links", parts.shared_s),
        ("exchange", parts.exchange_s),
    ];
    let rows = rows.map(|(name, part_s)| {
        let share = part_s / whole_s;
        row("", name, share, &format!("{} · {:.1} %", time(part_s.max(0.0)), 100.0 * share.max(0.0)))
    });
    let slowest = placement::letters(explanation.slowest);
    let caption =
        format!("Of replica {slowest}, which ends last, by the closed form: the parts add up to its step.");
    figure("parts", "Where a step's time goes", &caption, &rows.concat())
}

fn memory(plan: &Plan, explanation: &Explanation) -> String {
    let capacity = memory_by_host(&plan.cluster);
    let clusters = cluster_by_host(&plan.cluster);
    let mut seen = std::collections::HashSet::new();
    let mut rows = String::new();
    for (seat, &bytes) in plan.seats().into_iter().zip(&explanation.cost.memory_bytes) {
        let stage = &plan.replicas[seat.replica].stages[seat.stage];
        let host = seat.placement.host.as_str();
        let alike = (clusters.get(host), seat.stage, stage.layers, stage.ranks.len(), bytes.to_bits());
        if seen.len() >= ROWS_MAX || !seen.insert(alike) {
            continue;
        }
        let has = capacity.get(host).copied().unwrap_or(f64::INFINITY);
        let name =
            format!("{}{}, layers {}, {host}", placement::letters(seat.replica), seat.stage, layers(stage));
        let figure = format!("{} of {}", gigabytes(bytes), gigabytes(has));
        rows += &row(if bytes > 0.95 * has { "full" } else { "" }, &name, bytes / has, &figure);
    }
    figure(
        "memory",
        "Memory by stage",
        "A rank of each stage against its GPU; like ones are shown once.",
        &rows,
    )
}

fn runners_up(plan: &Plan, explanation: &Explanation) -> String {
    if explanation.runners_up.is_empty() {
        return String::new();
    }
    let ours_s = explanation.cost.iteration_s;
    let tokens = |step_s: f64| {
        format!(
            "{:.0} tokens/s · {:+.1} %",
            plan.tokens_per_step() as f64 / step_s,
            100.0 * (ours_s / step_s - 1.0)
        )
    };
    let best_s = explanation.runners_up.iter().filter_map(|r| r.step_s()).fold(ours_s, f64::min);
    let mut rows = row(
        "self",
        "this plan",
        best_s / ours_s,
        &format!("{:.0} tokens/s", plan.tokens_per_step() as f64 / ours_s),
    );
    for other in &explanation.runners_up {
        rows += &match &other.outcome {
            Outcome::Gives { step_s, .. } => row("", &other.name, best_s / step_s, &tokens(*step_s)),
            Outcome::Impossible(why) => words(&other.name, why),
        };
    }
    figure("runners-up", "Runners-up", "Tokens per second by the closed form, the same for all.", &rows)
}

fn worth(explanation: &Explanation) -> String {
    let prices = &explanation.shadow_prices;
    let Some(most) = prices.first().map(|p| p.gain) else { return String::new() };
    let rows = prices.iter().map(|p| {
        let how = if p.by == By::SamePlan { " or more" } else { "" };
        row("", &p.change, p.gain / most, &format!("{:+.1} %{how}", 100.0 * p.gain))
    });
    let caption = "Tokens per second gained. \"Or more\": by the same plan; a new one may gain more.";
    figure("worth", "What more would be worth", caption, &rows.collect::<String>())
}

fn proof(plan: &Plan, explanation: &Explanation) -> String {
    let lines = text::proof_lines(plan, explanation);
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines.iter().map(|line| format!("<li>{}</li>", Text(line))).collect();
    figure("proof", "Proof", "", &format!("<ul class=\"plain\">{items}</ul>\n"))
}

fn footer(plan: &Plan) -> String {
    let m = &plan.model;
    format!(
        "<footer><p>{} layers, width {}, {} heads, vocabulary {}, sequences of {} tokens; {} tokens a step; microbatches \
         of {}.</p></footer>\n",
        m.layers,
        m.hidden,
        m.heads,
        m.vocab,
        m.sequence,
        plan.tokens_per_step(),
        plan.micro_batch
    )
}

fn row(class: &str, name: &str, share: f64, figure: &str) -> String {
    format!(
        "<div class=\"row {class}\"><span>{}</span><svg height=\"14\" role=\"img\" aria-label=\"{}\">\
         <rect class=\"all\" width=\"100%\" height=\"14\" rx=\"3\"/>\
         <rect class=\"part\" width=\"{}\" height=\"14\" rx=\"3\"/></svg><span>{}</span></div>\n",
        Text(name),
        Text(figure),
        Percent(share),
        Text(figure)
    )
}

fn words(name: &str, why: &str) -> String {
    format!("<div class=\"row wide\"><span>{}</span><span>{}</span></div>\n", Text(name), Text(why))
}

fn figure(id: &str, heading: &str, caption: &str, content: &str) -> String {
    let caption =
        if caption.is_empty() { String::new() } else { format!("<figcaption>{caption}</figcaption>\n") };
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-heading\">\n<h2 id=\"{id}-heading\">{heading}</h2>\n\
         <figure>\n{content}{caption}</figure>\n</section>\n"
    )
}

/// A share as `12.345%`, within the drawing.
struct Percent(f64);

impl Display for Percent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}%", self.0.clamp(0.0, 1.0) * 100.0)
    }
}

/// Text with every character escaped that markup or a quoted attribute could take for its own.
struct Text<T>(T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
