//! The explanation as text for a terminal: where things lie, where a step's time goes, memory, idle GPUs, proof,
//! runners-up, shadow prices.
//!
//! Not here: the timeline (`simulate::render`), the page (`page`).

use std::collections::HashMap;
use std::fmt::Write as _;

use super::runner_up::Outcome;
use super::shadow::By;
use super::words::{
    cluster_by_host, cluster_of_stage, codec, exchange, gigabytes, layers, memory_by_host, plural, time,
};
use super::{Bottleneck, Explanation, placement};
use crate::cost::pipeline::held;
use crate::plan::{Exchange, Plan, Replica, Stage};
use crate::search::evaluate::ReplicaCost;

/// How a terminal takes text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Characters of a line.
    pub columns: usize,
    /// What marks replicas.
    pub colours: Colours,
}

/// Whether escape codes are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// Text alone.
    None,
    /// ANSI escape codes.
    Ansi,
}

impl Style {
    /// For files and pipes.
    pub const PLAIN: Self = Self { columns: 100, colours: Colours::None };

    /// The text in a replica's colour.
    pub(super) fn paint(self, replica: Option<usize>, text: &str) -> String {
        const CODES: [u8; 6] = [36, 33, 35, 32, 34, 31];
        match (self.colours, replica) {
            (Colours::Ansi, Some(replica)) => format!("\x1b[{}m{text}\x1b[0m", CODES[replica % 6]),
            _ => text.to_owned(),
        }
    }

    /// A bar of `share` in [0, 1].
    fn bar(self, share: f64) -> String {
        let most = self.columns.saturating_sub(44).clamp(8, 48) as f64;
        "#".repeat((most * share.clamp(0.0, 1.0)).round() as usize)
    }
}

/// The explanation as text without colours, about sixty lines.
pub fn render(plan: &Plan, explanation: &Explanation) -> String {
    render_in(plan, explanation, Style::PLAIN)
}

/// The explanation as text for a terminal.
pub fn render_in(plan: &Plan, explanation: &Explanation, style: Style) -> String {
    let mut text = String::new();
    headline(&mut text, plan, explanation);
    shapes(&mut text, plan, explanation);
    text += "\nwhere they lie (A0: stage 0 of replica A, - idle)\n";
    text += &placement::draw(plan, style);
    idle(&mut text, explanation);
    seconds(&mut text, plan, explanation, style);
    memory(&mut text, plan, explanation, style);
    proof(&mut text, plan, explanation);
    runners_up(&mut text, plan, explanation);
    beaten(&mut text, explanation);
    shadow_prices(&mut text, plan, explanation);
    text
}

/// Writing to a string does not fail.
macro_rules! line {
    ($text:expr, $($what:tt)*) => { let _ = writeln!($text, $($what)*); };
}

fn headline(text: &mut String, plan: &Plan, explanation: &Explanation) {
    let step_s = explanation.cost.iteration_s;
    let (replicas, ranks) = (plan.replicas.len(), plan.world_size());
    let tokens = plan.tokens_per_step() as f64 / step_s;
    line!(text, "{} per step by the closed form, {tokens:.0} tokens/s", time(step_s));
    line!(
        text,
        "{}, {}, microbatches of {}",
        plural(replicas, "replica"),
        plural(ranks as usize, "GPU"),
        plan.micro_batch
    );
    for exchange in &plan.exchange {
        line!(text, "{}: {}", members(plan, exchange), self::exchange(exchange));
    }
}

/// Whom an exchange joins, by the names of the placement.
fn members(plan: &Plan, exchange: &Exchange) -> String {
    if exchange.replicas.len() == plan.replicas.len() {
        return "between all replicas".into();
    }
    let names: Vec<String> = exchange.replicas.iter().map(|r| placement::letters(*r as usize)).collect();
    match names.as_slice() {
        few if few.len() <= 6 => format!("island of {}", few.join(", ")),
        [first, .., last] => format!("island of {} replicas, {first} .. {last}", names.len()),
        _ => String::new(),
    }
}

/// Replicas of one shape share a picture.
fn shapes(text: &mut String, plan: &Plan, explanation: &Explanation) {
    line!(text, "\nwhat goes where");
    let clusters = cluster_by_host(&plan.cluster);
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (index, replica) in plan.replicas.iter().enumerate() {
        let shape = picture(plan, &clusters, replica, &explanation.cost.replicas[index]);
        match shapes.iter_mut().find(|s| s.0 == shape) {
            Some(known) => known.1.push(index),
            None => shapes.push((shape, vec![index])),
        }
    }
    for (shape, members) in shapes.iter().take(MOST_SHAPES) {
        let replica = &plan.replicas[members[0]];
        let each = plural(replica.microbatches as usize, "microbatch");
        line!(text, "  {} x {each} ({})", members.len(), hosts(plan, members));
        text.push_str(shape);
    }
    if shapes.len() > MOST_SHAPES {
        let rest: usize = shapes[MOST_SHAPES..].iter().map(|s| s.1.len()).sum();
        line!(text, "  and {} of other shapes", plural(rest, "replica"));
    }
}

/// More shapes than this would hide the rest of the page.
const MOST_SHAPES: usize = 4;

/// ```text
///     +- ib ------------+           +- roce -------+
///     | 0-7 | 8-15      | =bf16==>  | 16-29        |
///     +-----------------+           +--------------+
/// ```
fn picture(plan: &Plan, clusters: &HashMap<&str, usize>, replica: &Replica, cost: &ReplicaCost) -> String {
    let depth = replica.depth();
    let name = |stage: &Stage| cluster_of_stage(plan, clusters, stage);
    let mut rows = [String::from("    "), String::from("    "), String::from("    ")];
    let mut at = 0;
    for run in replica.stages[..depth].chunk_by(|a, b| name(a) == name(b)) {
        let cells: Vec<String> = run.iter().map(cell).collect();
        let cells = if cells.len() > 8 { abridged(&cells) } else { cells.join(" | ") };
        let name = name(&run[0]);
        let width = cells.len().max(name.len() + 2);
        rows[0] += &format!("+- {name} {}+", "-".repeat(width - name.len() - 1));
        rows[1] += &format!("| {cells:width$} |");
        rows[2] += &format!("+{}+", "-".repeat(width + 2));
        at += run.len();
        if at < depth {
            let arrow = format!(
                " ={}, {}=> ",
                codec(replica.boundaries[at - 1].codec),
                time(cost.crossings[at - 1].delay_s())
            );
            rows[0] += &" ".repeat(arrow.len());
            rows[2] += &" ".repeat(arrow.len());
            rows[1] += &arrow;
        }
    }
    rows.iter().map(|row| format!("{}\n", row.trim_end())).collect()
}

fn abridged(cells: &[String]) -> String {
    format!(
        "{} | .. {} more .. | {}",
        cells[..3].join(" | "),
        cells.len() - 6,
        cells[cells.len() - 3..].join(" | ")
    )
}

fn cell(stage: &Stage) -> String {
    let team = if stage.ranks.len() > 1 { format!(" x{}", stage.ranks.len()) } else { String::new() };
    layers(stage) + &team
}

fn hosts(plan: &Plan, members: &[usize]) -> String {
    let ranks = members.iter().flat_map(|&m| &plan.replicas[m].stages).flat_map(|s| &s.ranks);
    let mut names: Vec<&str> = ranks.map(|r| r.host.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0..=4 => names.join(", "),
        many => format!("{}, .. {}: {many} hosts", names[0], names[many - 1]),
    }
}

fn idle(text: &mut String, explanation: &Explanation) {
    for idle in &explanation.idle {
        line!(text, "  idle: {} of {} GPUs of {}: {}", idle.gpus, idle.of, idle.cluster, idle.reason);
    }
}

fn seconds(text: &mut String, plan: &Plan, explanation: &Explanation, style: Style) {
    let (parts, whole_s) = (&explanation.parts, explanation.cost.iteration_s);
    line!(text, "\nwhere a step's time goes (slowest replica: {})", placement::letters(explanation.slowest));
    let rows = [
        ("compute", parts.compute_s),
        ("fill and drain", parts.fill_s),
        ("boundaries", parts.boundary_s),
        ("shared links", parts.shared_s),
        ("exchange", parts.exchange_s),
    ];
    for (name, part_s) in rows.into_iter().filter(|r| r.1 > 1e-6 * whole_s) {
        let bar = style.bar(part_s / whole_s);
        let row = format!("  {name:<15} {:>9}  {:>5.1} %  {bar}", time(part_s), 100.0 * part_s / whole_s);
        line!(text, "{}", row.trim_end());
    }
    line!(text, "  bottleneck: {}", bottleneck_text(plan, explanation));
}

/// What sets the pace, in words.
pub(super) fn bottleneck_text(plan: &Plan, explanation: &Explanation) -> String {
    let (slowest, cost) = (explanation.slowest, &explanation.cost.replicas[explanation.slowest]);
    let replica = &plan.replicas[slowest];
    match &explanation.bottleneck {
        Bottleneck::Stage(i) => {
            let stage = &replica.stages[*i];
            let (host, per) = (&stage.ranks[0].host, time(cost.stages_s[*i]));
            format!("compute of stage {i} (layers {}) on {host}, {per} per microbatch", cell(stage))
        }
        Bottleneck::Boundary(i) => {
            let (bytes, delay) = (cost.crossing_bytes[*i], time(cost.crossings[*i].delay_s()));
            let clusters = cluster_by_host(&plan.cluster);
            let way = [i, &(i + 1)].map(|s| cluster_of_stage(plan, &clusters, &replica.stages[*s]));
            format!(
                "boundary {i}, {} to {}: {:.1} MB in {delay}, each way",
                way[0],
                way[1],
                bytes as f64 / 1e6
            )
        }
        Bottleneck::Shared(name) => format!("{name}, shared by all replicas"),
        Bottleneck::Exchange => "the exchange between replicas".into(),
    }
}

/// The fullest rank of every cluster.
fn memory(text: &mut String, plan: &Plan, explanation: &Explanation, style: Style) {
    line!(text, "\nmemory of the fullest GPU");
    let (seats, clusters) = (plan.seats(), cluster_by_host(&plan.cluster));
    let wide = plan.cluster.clusters.iter().map(|f| f.name.len()).max().unwrap_or(0).max(8);
    for (index, fabric) in plan.cluster.clusters.iter().enumerate() {
        let inside = seats.iter().zip(&explanation.cost.memory_bytes);
        let inside = inside.filter(|(seat, _)| clusters.get(seat.placement.host.as_str()) == Some(&index));
        let Some((seat, &bytes)) = inside.max_by(|a, b| a.1.total_cmp(b.1)) else {
            line!(text, "  {:<wide$} not used", fabric.name);
            continue;
        };
        let replica = &plan.replicas[seat.replica];
        let (ranks, chunks) = replica.split_ranks();
        let held = held(replica.microbatches, ranks as u32, chunks, seat.stage as u32);
        let share = bytes / fabric.gpu.memory_bytes as f64;
        line!(
            text,
            "  {:<wide$} {:>8} of {:>8} {:>4.0} %  {} (rank {}, {} in flight)",
            fabric.name,
            gigabytes(bytes),
            gigabytes(fabric.gpu.memory_bytes as f64),
            100.0 * share,
            style.bar(share * 0.5),
            seat.placement.rank,
            plural(held as usize, "microbatch")
        );
    }
    let tight = tight(plan, explanation);
    if tight > 0 {
        line!(text, "  memory binds too: {} fuller than 95 %", plural(tight, "GPU"));
    }
}

/// GPUs with less than 5 % of their memory free.
fn tight(plan: &Plan, explanation: &Explanation) -> usize {
    let memory = memory_by_host(&plan.cluster);
    let seats = plan.seats().into_iter().zip(&explanation.cost.memory_bytes);
    let has = |host: &str| memory.get(host).copied().unwrap_or(f64::INFINITY);
    seats.filter(|(seat, bytes)| **bytes > 0.95 * has(&seat.placement.host)).count()
}

fn proof(text: &mut String, plan: &Plan, explanation: &Explanation) {
    for (i, line) in proof_lines(plan, explanation).iter().enumerate() {
        line!(text, "{}{line}", if i == 0 { "\nproof: " } else { "  " });
    }
}

/// What is proven, of which space; nothing of a plan that no search made.
pub(super) fn proof_lines(plan: &Plan, explanation: &Explanation) -> Vec<String> {
    let Some(solver) = &plan.solver else { return vec![] };
    let mut lines = vec![
        format!(
            "no plan of the space takes less than {} ({:.2} % below)",
            time(solver.bound_s),
            100.0 * solver.gap
        ),
        "space: runs contiguous in a cluster, one tensor-parallel degree a run".into(),
    ];
    if explanation.thinned {
        lines.push(
            "more pipelines than can be listed: with more than three clusters only those over at most two were looked \
             at, and the bound is of these (docs/planner.md)"
                .into(),
        );
    }
    if let Some(flops_s) = explanation.flops_bound_s {
        lines.push(format!("at the sum of all rates, nothing idle: {}", time(flops_s)));
    }
    lines
}

fn runners_up(text: &mut String, plan: &Plan, explanation: &Explanation) {
    if explanation.runners_up.is_empty() {
        return;
    }
    line!(text, "\nrunners-up{:<22} {:>10} {:>9} {:>10}", "", "step", "tokens/s", "simulated");
    let step_s = explanation.cost.iteration_s;
    let row = |name: &str, step: f64, simulated: Option<f64>| {
        let simulated = simulated.map_or("-".into(), time);
        let fewer = 100.0 * (step_s / step - 1.0);
        let fewer = if step == step_s { "-".into() } else { format!("{fewer:+.1} %") };
        format!("  {name:<30} {:>10} {fewer:>9} {simulated:>10}", time(step))
    };
    line!(text, "{}", row("this plan", step_s, plan.predicted.as_ref().map(|p| p.iteration_s)));
    for other in &explanation.runners_up {
        match &other.outcome {
            Outcome::Gives { step_s, simulated_s, gpus } => {
                line!(text, "{}  {}", row(&other.name, *step_s, *simulated_s), plural(*gpus as usize, "GPU"));
            }
            Outcome::Impossible(why) => {
                line!(text, "  {:<30} {why}", other.name);
            }
        }
    }
}

/// A search that stopped early may have missed what a simple rule finds.
fn beaten(text: &mut String, explanation: &Explanation) {
    let step_s = explanation.cost.iteration_s;
    let faster =
        explanation.runners_up.iter().filter(|r| r.step_s().is_some_and(|s| s < step_s * (1.0 - 1e-6)));
    if let Some(best) = faster.min_by(|a, b| a.step_s().partial_cmp(&b.step_s()).expect("finite")) {
        line!(
            text,
            "  {} is faster than this plan: the search stopped within its gap; raise --time-limit",
            best.name
        );
    }
}

fn shadow_prices(text: &mut String, plan: &Plan, explanation: &Explanation) {
    if explanation.shadow_prices.is_empty() {
        return;
    }
    line!(text, "\nwhat more would be worth (tokens/s)");
    if let Some(solver) = plan.solver.as_ref().filter(|s| s.gap > 0.01) {
        line!(
            text,
            "  no more exact than the gap of {:.1} %: part of a gain may be a search that found more",
            100.0 * solver.gap
        );
    }
    for price in &explanation.shadow_prices {
        let how = match price.by {
            By::SamePlan => "  by the same plan, a new one gains as much or more",
            By::Replanned => "",
        };
        line!(text, "  {:<40} {:+.1} %{how}", price.change, 100.0 * price.gain);
    }
}
