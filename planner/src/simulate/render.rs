//! A simulation as text for a terminal: the figures, the picture of a step, tables of ranks and links.
//!
//! Not here: why the plan is as it is (`explain`), the trace (`trace`).

use std::fmt::Write;

use super::{LinkLoad, RankLoad, Simulation, Traffic};
use crate::plan::{ExchangeKind, Plan, ScheduleKind, Seat};
use crate::schedule::{Action, Event, draw_events};
use crate::units::{human_bytes, human_compute, human_rate, human_time};

/// Columns of the picture.
const COLUMNS: f64 = 96.0;
/// Ranks in the picture and in the table; a note tells of the rest.
const RANKS: u32 = 32;
/// The busiest links listed.
const LINKS: usize = 16;

/// The simulation of `plan`, about 80 to 110 columns wide.
pub fn render(plan: &Plan, simulation: &Simulation) -> String {
    let mut text = String::new();
    let parts = [
        figures(plan, simulation),
        over_memory(simulation),
        picture(plan, simulation),
        ranks(plan, simulation),
        links(simulation),
    ];
    parts.iter().for_each(|part| text.push_str(part));
    text
}

fn figures(plan: &Plan, simulation: &Simulation) -> String {
    let predicted = simulation.predicted(plan);
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "iteration   {}  {}",
            human_time(simulation.iteration_s),
            exchange_note(plan, simulation)
        ),
    );
    line(
        &mut text,
        format_args!(
            "throughput  {:.0} tokens/s, {} of model arithmetic per GPU",
            predicted.tokens_per_s,
            human_compute(predicted.model_flops_per_s_per_gpu)
        ),
    );
    parts(simulation).iter().for_each(|parts| line(&mut text, format_args!("a rank's time, mean: {parts}")));
    text
}

fn over_memory(simulation: &Simulation) -> String {
    let mut text = String::new();
    for over in simulation.over_memory.iter().take(LINKS) {
        line(&mut text, format_args!("over memory {over}"));
    }
    if let more @ 1.. = simulation.over_memory.len().saturating_sub(LINKS) {
        line(&mut text, format_args!("            and {more} ranks more (--json has all)"));
    }
    text
}

/// What the ranks' time goes to, in the mean.
fn parts(simulation: &Simulation) -> Option<String> {
    let mean = |of: fn(&RankLoad) -> f64| {
        simulation.ranks.iter().map(of).sum::<f64>() / simulation.ranks.len() as f64
    };
    let part = |name, seconds| format!("{name} {}", percent(seconds, simulation.iteration_s));
    (!simulation.ranks.is_empty()).then(|| {
        let parts = [
            part("compute", mean(|r| r.busy_s)),
            part("bubble", mean(|r| r.bubble_s)),
            part("boundaries", mean(|r| r.boundary_s)),
            part("exchange", mean(|r| r.exchange_s)),
        ];
        parts.join(", ")
    })
}

fn exchange_note(plan: &Plan, simulation: &Simulation) -> String {
    let periods: Vec<String> =
        plan.exchange.iter().filter(|e| e.replicas.len() > 1).map(exchange_words).collect();
    match (periods.is_empty(), !simulation.exchange_timeline.is_empty()) {
        (true, _) => "(one replica, nothing exchanged)".to_owned(),
        (false, false) => format!("({}, in every step)", periods.join(", ")),
        (false, true) => format!(
            "(step {}; {} adds {})",
            human_time(simulation.step_s),
            periods.join(", "),
            human_time(simulation.exchange_s)
        ),
    }
}

fn exchange_words(exchange: &crate::plan::Exchange) -> String {
    match exchange.kind {
        ExchangeKind::Dense => "dense exchange".to_owned(),
        ExchangeKind::Streaming => format!("streaming exchange every {} steps", exchange.every),
        ExchangeKind::Sparse { top_k } => {
            format!("sparse exchange (top {top_k} of 4096) every {} steps", exchange.every)
        }
    }
}

fn picture(plan: &Plan, simulation: &Simulation) -> String {
    let kind = match plan.schedule.kind {
        ScheduleKind::Gpipe => "gpipe",
        ScheduleKind::OneForwardOneBackward => "1f1b",
    };
    let shown = from_own_start(plan, &simulation.timeline);
    let end_s = shown.iter().map(|e| e.end_s).fold(0.0, f64::max);
    let column_s = end_s / COLUMNS;
    let mut text = String::new();
    line(
        &mut text,
        format_args!(
            "\none step, {kind}, each replica from its own start; a column is {}",
            human_time(column_s)
        ),
    );
    if column_s > 0.0 {
        text.push_str(&draw_events(&shown, column_s));
    }
    line(
        &mut text,
        format_args!("0-9 forward, a-j input gradient, A-J weight gradient, = reduce, . waiting"),
    );
    text
}

/// The events of the ranks shown. Replicas drift apart between exchanges: each is moved so that its first forward
/// begins at 0.
fn from_own_start(plan: &Plan, timeline: &[Event]) -> Vec<Event> {
    let replica_of: Vec<usize> = plan.seats().iter().map(|seat| seat.replica).collect();
    let mut start_s = vec![f64::INFINITY; plan.replicas.len()];
    for event in timeline.iter().filter(|e| matches!(e.action, Action::Forward { .. })) {
        let replica = replica_of[event.rank as usize];
        start_s[replica] = start_s[replica].min(event.start_s);
    }
    let moved = |e: &Event| {
        let start_s = start_s[replica_of[e.rank as usize]];
        Event { start_s: e.start_s - start_s, end_s: e.end_s - start_s, ..*e }
    };
    timeline.iter().filter(|e| e.rank < RANKS).map(moved).collect()
}

fn ranks(plan: &Plan, simulation: &Simulation) -> String {
    let mut text = String::new();
    let mut row = |cells: [&str; 9]| {
        let [rank, replica, stage, layers, place, busy, share, held, memory] = cells;
        line(
            &mut text,
            format_args!(
                "{rank:>5} {replica:>8} {stage:>6} {layers:>9}  {place:<20} {busy:>9} {share:>6} {held:>10} {memory:>9}"
            ),
        );
    };
    row(["\n rank", "replica", "stage", "layers", "place", "busy", "share", "in flight", "memory"]);
    for seat in plan.seats().into_iter().take(RANKS as usize) {
        let cells = rank_cells(plan, simulation, seat);
        row(cells.each_ref().map(String::as_str));
    }
    let left = plan.world_size().saturating_sub(RANKS);
    if left > 0 {
        line(&mut text, format_args!("      and {left} ranks more (--json has all)"));
    }
    text
}

fn rank_cells(plan: &Plan, simulation: &Simulation, seat: Seat<'_>) -> [String; 9] {
    let rank = seat.placement.rank as usize;
    let load = &simulation.ranks[rank];
    let [first, end] = plan.replicas[seat.replica].stages[seat.stage].layers;
    [
        rank.to_string(),
        seat.replica.to_string(),
        seat.stage.to_string(),
        format!("{first}..{end}"),
        format!("{}/gpu{}", seat.placement.host, seat.placement.gpu),
        human_time(load.busy_s),
        percent(load.busy_s, load.busy_s + load.idle_s),
        simulation.peak_in_flight[rank].to_string(),
        human_bytes(simulation.peak_memory_bytes[rank]),
    ]
}

fn links(simulation: &Simulation) -> String {
    let busy_s = |l: &LinkLoad| l.traffic.step_busy_s + l.traffic.exchange_busy_s;
    let mut loads: Vec<&LinkLoad> = simulation.links.iter().collect();
    loads.sort_by(|a, b| busy_s(b).total_cmp(&busy_s(a)));
    let mut text = String::new();
    if loads.is_empty() {
        return text;
    }
    line(
        &mut text,
        format_args!(
            "\n{:<32} {:>11} {:>9} {:>6} {:>11} {:>9}",
            "busiest links", "rate", "per step", "busy", "exchange", "takes"
        ),
    );
    for load in loads.iter().take(LINKS) {
        let Traffic { step_bytes, exchange_bytes, step_busy_s, exchange_busy_s } = load.traffic;
        let rate = human_rate((step_bytes + exchange_bytes) as f64 / (step_busy_s + exchange_busy_s));
        let busy = percent(step_busy_s, simulation.step_s);
        let per_step = human_bytes(step_bytes);
        let (exchange, takes) = match exchange_bytes {
            0 => ("-".to_owned(), "-".to_owned()),
            bytes => (human_bytes(bytes), human_time(exchange_busy_s)),
        };
        line(
            &mut text,
            format_args!("{:<32} {rate:>11} {per_step:>9} {busy:>6} {exchange:>11} {takes:>9}", load.name),
        );
    }
    if loads.len() > LINKS {
        line(&mut text, format_args!("and {} links more (--json has all)", loads.len() - LINKS));
    }
    text
}

fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { "-".to_owned() }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a string does not fail");
}
