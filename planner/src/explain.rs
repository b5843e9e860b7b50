//! Why this plan: what goes where, where a step's seconds go, what limits it, and what the next best would take.
//!
//! ```text
//!   step = compute (m longest stages) + fill (the other stages, once) + boundaries (exposed) + shared links + exchange
//! ```
//! of the slowest replica, by the closed form: the parts add up to the objective. Runners-up are searches of parts of
//! the space (one replica, one cluster alone) and the plan with its layers spread evenly.
//!
//! Not here: the timeline (`simulate`); shadow prices and what-if.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cost::memory::in_flight;
use crate::plan::{Codec, ExchangeKind, Plan, Replica, Stage};
use crate::search::evaluate::{EvaluateError, Evaluation, ReplicaCost, evaluate};
use crate::search::{EngineLimits, Found, Scope, SearchError, SearchOptions, search_within};

/// What there is to say about a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The closed form of the plan.
    pub cost: Evaluation,
    /// Index of the replica that ends last.
    pub slowest: usize,
    /// Where the seconds of a step go.
    pub parts: Parts,
    /// What sets the pace.
    pub bottleneck: Bottleneck,
    /// The best of smaller spaces; empty unless asked for.
    pub runners_up: Vec<RunnerUp>,
    /// Columns were too many to list; the bound is a relaxation's.
    pub thinned: bool,
    /// FLOPs over the sum of all rates: no plan is faster. `None` where no search was made.
    pub flops_bound_s: Option<f64>,
}

/// Seconds per step, adding up to the closed form's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parts {
    /// The longest stage's work on all microbatches.
    pub compute_s: f64,
    /// The other stages' work on one: the pipeline fills and drains.
    pub fill_s: f64,
    /// Crossings that no compute hides, and stages out of step because of them.
    pub boundary_s: f64,
    /// Waiting for a capacity that replicas share.
    pub shared_s: f64,
    /// The exchange, amortised.
    pub exchange_s: f64,
}

/// What sets the pace.
#[derive(Debug, Clone, PartialEq)]
pub enum Bottleneck {
    /// The longest stage of the slowest replica.
    Stage(usize),
    /// A boundary of the slowest replica.
    Boundary(usize),
    /// A capacity that replicas share.
    Shared(String),
    /// The exchange between replicas.
    Exchange,
}

/// Another plan, for comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct RunnerUp {
    /// What it is restricted to.
    pub name: String,
    /// Closed-form seconds per step, or why there is none.
    pub outcome: Result<f64, String>,
}

/// Explains any plan, a hand-written one too.
///
/// # Errors
/// [`EvaluateError`] where the plan does not belong to its inventory.
pub fn explain(plan: &Plan) -> Result<Explanation, EvaluateError> {
    let cost = evaluate(plan)?;
    let ends = |i: &usize| cost.replicas[*i].pipeline_s + cost.replicas[*i].sync_s;
    let slowest = (0..cost.replicas.len()).max_by(|a, b| ends(a).total_cmp(&ends(b))).unwrap_or(0);
    let parts = parts(&cost, &cost.replicas[slowest], plan.replicas[slowest].microbatches);
    let bottleneck = bottleneck(&cost, &cost.replicas[slowest], &parts);
    Ok(Explanation {
        cost,
        slowest,
        parts,
        bottleneck,
        runners_up: vec![],
        thinned: false,
        flops_bound_s: None,
    })
}

/// Explains what a search found and searches its runners-up, each for a few seconds at most.
///
/// # Errors
/// As [`explain`].
pub fn explain_found(
    found: &Found,
    limits: &EngineLimits,
    options: &SearchOptions,
) -> Result<Explanation, EvaluateError> {
    let plan = &found.plan;
    let options = SearchOptions { gap: options.gap.max(0.02), time_limit: RUNNER_UP_TIME, ..options.clone() };
    let mut runners_up = Vec::new();
    if plan.replicas.len() > 1 {
        let scope = Scope { max_replicas: 1, ..Scope::whole(&plan.cluster) };
        runners_up.push(runner_up("one replica".into(), plan, limits, &options, &scope));
    }
    if plan.cluster.clusters.len() > 1 {
        for (index, fabric) in plan.cluster.clusters.iter().enumerate() {
            let scope = Scope { clusters: vec![index], ..Scope::whole(&plan.cluster) };
            runners_up.push(runner_up(format!("{} alone", fabric.name), plan, limits, &options, &scope));
        }
    }
    runners_up.extend(uniform(plan));
    let flops_bound_s = Some(found.flops_bound_s);
    Ok(Explanation { runners_up, thinned: found.thinned, flops_bound_s, ..explain(plan)? })
}

/// Runners-up are for comparison: good is good enough.
const RUNNER_UP_TIME: Duration = Duration::from_secs(5);

fn runner_up(
    name: String,
    plan: &Plan,
    limits: &EngineLimits,
    options: &SearchOptions,
    scope: &Scope,
) -> RunnerUp {
    let found = search_within(&plan.cluster, &plan.model, limits, options, scope);
    let outcome = match found {
        Ok(found) => Ok(found.plan.solver.map_or(f64::NAN, |s| s.objective_s)),
        Err(SearchError::DoesNotFit { short_bytes, .. }) => {
            Err(format!("does not fit, {} short on a GPU", gigabytes(short_bytes as f64)))
        }
        Err(error) => Err(error.to_string()),
    };
    RunnerUp { name, outcome }
}

/// The same stages with layers spread evenly, whatever the GPU; `None` if they are already.
fn uniform(plan: &Plan) -> Option<RunnerUp> {
    let mut even = plan.clone();
    for replica in &mut even.replicas {
        let (stages, layers) = (replica.stages.len() as u32, plan.model.layers);
        let cut = |i: u32| i * (layers / stages) + i.min(layers % stages);
        for (i, stage) in (0..).zip(&mut replica.stages) {
            stage.layers = [cut(i), cut(i + 1)];
        }
    }
    if even.replicas == plan.replicas {
        return None;
    }
    let cost = evaluate(&even).ok()?;
    let short = shortest(&even, &cost);
    let outcome = match short {
        bytes if bytes > 0.0 => Err(format!("does not fit, {} short on a GPU", gigabytes(bytes))),
        _ => Ok(cost.iteration_s),
    };
    Some(RunnerUp { name: "same stages, even layers".into(), outcome })
}

/// What the fullest GPU lacks.
fn shortest(plan: &Plan, cost: &Evaluation) -> f64 {
    let seats = plan.seats();
    let short = seats
        .iter()
        .zip(&cost.memory_bytes)
        .map(|(seat, bytes)| bytes - memory_of(plan, &seat.placement.host));
    short.fold(0.0, f64::max)
}

fn memory_of(plan: &Plan, host: &str) -> f64 {
    let fabrics = &plan.cluster.clusters;
    let fabric = fabrics.iter().find(|f| f.hosts.iter().any(|h| h.name == host));
    fabric.map_or(f64::INFINITY, |f| f.gpu.memory_bytes as f64)
}

fn parts(cost: &Evaluation, slowest: &ReplicaCost, microbatches: u32) -> Parts {
    let longest_s = slowest.stages_s.iter().copied().fold(0.0, f64::max);
    let compute_s = f64::from(microbatches) * longest_s;
    let fill_s = slowest.stages_s.iter().sum::<f64>() - longest_s;
    Parts {
        compute_s,
        fill_s,
        boundary_s: slowest.pipeline_s - compute_s - fill_s,
        shared_s: cost.iteration_s - cost.exchange_s - slowest.pipeline_s,
        exchange_s: cost.exchange_s,
    }
}

fn bottleneck(cost: &Evaluation, slowest: &ReplicaCost, parts: &Parts) -> Bottleneck {
    let pipeline_s = slowest.pipeline_s + parts.shared_s;
    let longest =
        |times: &[f64]| (0..times.len()).max_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(0);
    let delays: Vec<f64> = slowest.crossings.iter().map(|c| c.delay_s()).collect();
    match &cost.busiest_pool {
        _ if parts.exchange_s > pipeline_s => Bottleneck::Exchange,
        Some((name, _)) if parts.shared_s > 0.0 => Bottleneck::Shared(name.clone()),
        _ if parts.boundary_s > parts.compute_s => Bottleneck::Boundary(longest(&delays)),
        _ => Bottleneck::Stage(longest(&slowest.stages_s)),
    }
}

/// The explanation as text for a terminal, about forty lines.
pub fn render(plan: &Plan, explanation: &Explanation) -> String {
    let mut text = String::new();
    headline(&mut text, plan, explanation);
    placement(&mut text, plan, explanation);
    seconds(&mut text, plan, explanation);
    memory(&mut text, plan, explanation);
    proof(&mut text, plan, explanation);
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
        let kind = match exchange.kind {
            ExchangeKind::Dense => "gradients summed every step".to_owned(),
            ExchangeKind::Streaming => format!("dense pseudo-gradients every {} steps", exchange.every),
            ExchangeKind::Sparse { top_k } => {
                format!("sparse pseudo-gradients ({top_k} of 4096) every {} steps", exchange.every)
            }
        };
        line!(text, "between replicas: {kind}");
    }
}

/// Replicas of one shape share a picture.
fn placement(text: &mut String, plan: &Plan, explanation: &Explanation) {
    line!(text, "\nwhat goes where");
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    for (index, replica) in plan.replicas.iter().enumerate() {
        let shape = picture(plan, replica, &explanation.cost.replicas[index]);
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
fn picture(plan: &Plan, replica: &Replica, cost: &ReplicaCost) -> String {
    let mut rows = [String::from("    "), String::from("    "), String::from("    ")];
    let mut at = 0;
    for run in replica.stages.chunk_by(|a, b| fabric_name(plan, a) == fabric_name(plan, b)) {
        let cells: Vec<String> = run.iter().map(cell).collect();
        let cells = if cells.len() > 8 { abridged(&cells) } else { cells.join(" | ") };
        let name = fabric_name(plan, &run[0]);
        let width = cells.len().max(name.len() + 2);
        rows[0] += &format!("+- {name} {}+", "-".repeat(width - name.len() - 1));
        rows[1] += &format!("| {cells:width$} |");
        rows[2] += &format!("+{}+", "-".repeat(width + 2));
        at += run.len();
        if at < replica.stages.len() {
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
    let [first, end] = stage.layers;
    let team = if stage.ranks.len() > 1 { format!(" x{}", stage.ranks.len()) } else { String::new() };
    if first + 1 == end { format!("{first}{team}") } else { format!("{first}-{}{team}", end - 1) }
}

fn fabric_name<'a>(plan: &'a Plan, stage: &Stage) -> &'a str {
    let host = stage.ranks.first().map(|r| r.host.as_str());
    let fabrics = &plan.cluster.clusters;
    let fabric = fabrics.iter().find(|f| f.hosts.iter().any(|h| Some(h.name.as_str()) == host));
    fabric.map_or("?", |f| f.name.as_str())
}

fn codec(codec: Codec) -> String {
    match codec {
        Codec::None => "plain".into(),
        Codec::Bf16 => "bf16".into(),
        Codec::Int8 => "int8".into(),
        Codec::Subspace { rank } => format!("subspace {rank}"),
    }
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

fn seconds(text: &mut String, plan: &Plan, explanation: &Explanation) {
    let (parts, whole_s) = (&explanation.parts, explanation.cost.iteration_s);
    line!(text, "\nwhere a step's time goes (slowest replica: {})", explanation.slowest);
    let rows = [
        ("compute", parts.compute_s),
        ("fill and drain", parts.fill_s),
        ("boundaries", parts.boundary_s),
        ("shared links", parts.shared_s),
        ("exchange", parts.exchange_s),
    ];
    for (name, part_s) in rows.into_iter().filter(|r| r.1 > 1e-6 * whole_s) {
        let bar = "#".repeat((40.0 * part_s / whole_s).round() as usize);
        let row = format!("  {name:<15} {:>9}  {:>5.1} %  {bar}", time(part_s), 100.0 * part_s / whole_s);
        line!(text, "{}", row.trim_end());
    }
    line!(text, "  bottleneck: {}", bottleneck_text(plan, explanation));
}

fn bottleneck_text(plan: &Plan, explanation: &Explanation) -> String {
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
            let way = [i, &(i + 1)].map(|s| fabric_name(plan, &replica.stages[*s]));
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
fn memory(text: &mut String, plan: &Plan, explanation: &Explanation) {
    line!(text, "\nmemory of the fullest GPU");
    let seats = plan.seats();
    for fabric in &plan.cluster.clusters {
        let inside = seats.iter().zip(&explanation.cost.memory_bytes);
        let inside = inside.filter(|(seat, _)| fabric.hosts.iter().any(|h| h.name == seat.placement.host));
        let Some((seat, &bytes)) = inside.max_by(|a, b| a.1.total_cmp(b.1)) else {
            line!(text, "  {:<12} not used", fabric.name);
            continue;
        };
        let replica = &plan.replicas[seat.replica];
        let held = in_flight(replica.microbatches, replica.stages.len() as u32, seat.stage as u32);
        let share = 100.0 * bytes / fabric.gpu.memory_bytes as f64;
        line!(
            text,
            "  {:<12} {} of {} ({share:.0} %): rank {}, {} in flight",
            fabric.name,
            gigabytes(bytes),
            gigabytes(fabric.gpu.memory_bytes as f64),
            seat.placement.rank,
            plural(held as usize, "microbatch")
        );
    }
}

fn proof(text: &mut String, plan: &Plan, explanation: &Explanation) {
    if let Some(solver) = &plan.solver {
        line!(
            text,
            "\nproof: no plan of the space takes less than {} ({:.2} % below)",
            time(solver.bound_s),
            100.0 * solver.gap
        );
        line!(
            text,
            "  space: runs contiguous in a cluster, one tensor-parallel degree a run, one microbatch size"
        );
        if explanation.thinned {
            line!(
                text,
                "  too many pipelines to list: found among those with even loads, bound from the sum of rates"
            );
        }
        if let Some(flops_s) = explanation.flops_bound_s {
            line!(text, "  at the sum of all rates, nothing idle: {}", time(flops_s));
        }
    }
    if !explanation.runners_up.is_empty() {
        line!(text, "\nrunners-up");
    }
    for other in &explanation.runners_up {
        match &other.outcome {
            Ok(step_s) => {
                let more = 100.0 * (step_s / explanation.cost.iteration_s - 1.0);
                line!(text, "  {:<28} {:>9}  {more:+.1} %", other.name, time(*step_s));
            }
            Err(why) => {
                line!(text, "  {:<28} {why}", other.name);
            }
        }
    }
}

fn plural(count: usize, noun: &str) -> String {
    let ending = match noun {
        _ if count == 1 => "",
        noun if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

fn gigabytes(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.1} GB", bytes / 1e9) } else { format!("{:.1} MB", bytes / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Cluster;
    use crate::search::fixture::{fabric, gpt, gpu, link};
    use crate::search::search;

    fn found() -> (Found, Explanation) {
        let mut slow = fabric("slow", 2, 1);
        slow.gpu = gpu(0.5e12, 90_000_000);
        let mut fast = fabric("fast", 1, 3);
        fast.gpu.memory_bytes = 90_000_000;
        let cluster = Cluster { clusters: vec![fast, slow], links: vec![link("fast", "slow", 1e7, 0.02)] };
        let options = SearchOptions::default();
        let found = search(&cluster, &gpt(8, 256), &EngineLimits::NATIVE, &options).unwrap();
        let explanation = explain_found(&found, &EngineLimits::NATIVE, &options).unwrap();
        (found, explanation)
    }

    #[test]
    fn the_parts_add_up_to_the_objective() {
        let (found, e) = found();
        let p = e.parts;
        let sum = p.compute_s + p.fill_s + p.boundary_s + p.shared_s + p.exchange_s;
        let objective_s = found.plan.solver.unwrap().objective_s;
        assert!((sum / objective_s - 1.0).abs() < 1e-12);
        assert!(p.fill_s > 0.0 && p.boundary_s > 0.0, "a pipeline, or this shows little: {p:?}");
        assert!([p.compute_s, p.fill_s, p.boundary_s, p.shared_s, p.exchange_s].iter().all(|s| *s > -1e-15));
    }

    #[test]
    fn no_runner_up_is_better_by_more_than_the_gap() {
        let (found, e) = found();
        assert!(e.runners_up.len() >= 3, "{:?}", e.runners_up);
        let bound_s = found.plan.solver.unwrap().bound_s;
        for other in &e.runners_up {
            assert!(other.outcome.as_ref().is_ok_and(|s| *s >= bound_s), "{other:?}");
        }
    }

    #[test]
    fn the_page_names_clusters_bottleneck_bound_and_runners_up() {
        let (found, e) = found();
        let page = render(&found.plan, &e);
        for word in ["fast", "slow", "bottleneck:", "proof:", "runners-up", "fast alone", "memory"] {
            assert!(page.contains(word), "no {word} in\n{page}");
        }
        assert!(page.lines().count() < 60, "{page}");
        assert!(page.is_ascii());
    }
}
