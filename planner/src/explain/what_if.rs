//! What if a figure of the inventory or the model were another: `link.ib-roce.rate=100Gbit/s`.
//!
//! | key | value |
//! | --- | --- |
//! | `link.A-B.rate`, `.shared` | a rate; `shared=none` lifts the cap |
//! | `link.A-B.latency`, `.loss` | a time; a share in [0, 1) |
//! | `cluster.NAME.nodes`, `.gpus`, `.nic.count` | a whole number |
//! | `cluster.NAME.gpu` | a built-in GPU; `.gpu.memory`, `.gpu.efficiency` of the present one |
//! | `cluster.NAME.nic.rate`, `.ethernet.rate`, `.intra.rate` | a rate |
//! | `cluster.NAME.nic.class` | infiniband, roce, ethernet |
//! | `model.KEY` | as in model.toml; `micro_batch=auto` leaves it to the planner |
//!
//! The key is looked up among all that the inventory has, so that an unknown one is answered with the nearest. What
//! results must pass the same checks as a file.
//!
//! Not here: what the changed problem gives (`search`), how the two compare ([`compare`] says it in words).

use serde_json::Value;

use super::shadow::add_host;
use super::words;
use crate::input::did_you_mean;
use crate::inventory::{self, Cluster, NicClass, built_in_gpu, built_in_gpus};
use crate::model::{self, Model};
use crate::plan::Plan;
use crate::search::evaluate::evaluate;
use crate::search::{EngineLimits, SearchError, SearchOptions, search};
use crate::units::{Rate, Size, Time, human_time};

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WhatIfError {
    /// No `=`.
    #[error("what-if `{0}`: expected KEY=VALUE, such as link.ib-roce.rate=100Gbit/s")]
    Shape(String),
    /// A key that nothing has.
    #[error("what-if: no `{key}` in this plan; {hint}")]
    UnknownKey {
        /// As given.
        key: String,
        /// The nearest, or what there is.
        hint: String,
    },
    /// A value that the key does not take.
    #[error("what-if: {key} = `{value}`: {why}")]
    BadValue {
        /// As given.
        key: String,
        /// As given.
        value: String,
        /// What it takes.
        why: String,
    },
    /// The changed inventory or model cannot be.
    #[error("what-if: {0}")]
    Unsound(String),
    /// There is no plan then.
    #[error("what-if: no plan: {0}")]
    NoPlan(#[from] SearchError),
}

/// What a key sets.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Link(usize, &'static str),
    Cluster(usize, &'static str),
    Model(&'static str),
}

const LINK_KEYS: [&str; 4] = ["rate", "latency", "shared", "loss"];
const CLUSTER_KEYS: [&str; 10] = [
    "nodes",
    "gpus",
    "gpu",
    "gpu.memory",
    "gpu.efficiency",
    "nic.rate",
    "nic.count",
    "nic.class",
    "ethernet.rate",
    "intra.rate",
];
const MODEL_KEYS: [&str; 12] = [
    "layers",
    "hidden",
    "heads",
    "vocab",
    "sequence",
    "global_batch",
    "micro_batch",
    "precision",
    "recompute",
    "exchange",
    "boundary",
    "mlp_width",
];

/// Applies `KEY=VALUE` changes in order, and checks what results.
///
/// # Errors
/// [`WhatIfError`]: of a key or value that is not known, or a result that cannot be.
pub fn apply(changes: &[String], cluster: &Cluster, model: &Model) -> Result<(Cluster, Model), WhatIfError> {
    let (mut cluster, mut model) = (cluster.clone(), model.clone());
    for change in changes {
        let (key, value) = change.split_once('=').ok_or_else(|| WhatIfError::Shape(change.clone()))?;
        let (key, value) = (key.trim(), value.trim());
        let set = match target(key, &cluster)? {
            Target::Link(index, what) => set_link(&mut cluster, index, what, value),
            Target::Cluster(index, what) => set_cluster(&mut cluster, index, what, value),
            Target::Model(what) => set_model(&mut model, what, value),
        };
        set.map_err(|why| WhatIfError::BadValue { key: key.into(), value: value.into(), why })?;
    }
    inventory::check(&cluster).map_err(|fault| WhatIfError::Unsound(fault.to_string()))?;
    model::check(&model).map_err(|(_, fault)| WhatIfError::Unsound(fault.to_string()))?;
    Ok((cluster, model))
}

fn target(key: &str, cluster: &Cluster) -> Result<Target, WhatIfError> {
    let mut known: Vec<(String, Target)> = Vec::new();
    for (i, link) in cluster.links.iter().enumerate() {
        let [a, b] = &link.between;
        for what in LINK_KEYS {
            known.push((format!("link.{a}-{b}.{what}"), Target::Link(i, what)));
        }
    }
    for (i, fabric) in cluster.clusters.iter().enumerate() {
        for what in CLUSTER_KEYS {
            known.push((format!("cluster.{}.{what}", fabric.name), Target::Cluster(i, what)));
        }
    }
    known.extend(MODEL_KEYS.map(|what| (format!("model.{what}"), Target::Model(what))));
    let spelled = known.iter().find(|(name, _)| name == key).map(|(_, target)| target);
    if let Some(target) = spelled.or_else(|| turned_round(key, cluster, &known)) {
        return Ok(target.clone());
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
    Err(WhatIfError::UnknownKey { key: key.into(), hint: did_you_mean(key, &names) })
}

/// `link.B-A.rate` and `link.A~B.rate` are as good.
fn turned_round<'a>(key: &str, cluster: &Cluster, known: &'a [(String, Target)]) -> Option<&'a Target> {
    let same = |target: &Target| match target {
        Target::Link(index, what) => {
            let [a, b] = &cluster.links[*index].between;
            [format!("link.{b}-{a}.{what}"), format!("link.{a}~{b}.{what}"), format!("link.{b}~{a}.{what}")]
                .iter()
                .any(|name| name == key)
        }
        _ => false,
    };
    known.iter().map(|(_, target)| target).find(|target| same(target))
}

fn set_link(cluster: &mut Cluster, index: usize, what: &str, value: &str) -> Result<(), String> {
    let link = &mut cluster.links[index];
    match what {
        "rate" => link.rate_bytes_per_s = rate(value)?,
        "latency" => link.latency_s = value.parse::<Time>().map_err(|e| e.to_string())?.si(),
        "shared" if value == "none" => link.shared_bytes_per_s = None,
        "shared" => link.shared_bytes_per_s = Some(rate(value)?),
        _ => link.loss = number(value)?,
    }
    Ok(())
}

fn set_cluster(cluster: &mut Cluster, index: usize, what: &str, value: &str) -> Result<(), String> {
    if what == "nodes" {
        return set_nodes(cluster, index, number(value)?);
    }
    let fabric = &mut cluster.clusters[index];
    match what {
        "gpus" => fabric.gpus = number(value)?,
        "gpu" => {
            let unknown = || did_you_mean(value, &built_in_gpus());
            fabric.gpu = built_in_gpu(value).ok_or_else(unknown)?;
        }
        "gpu.memory" => {
            fabric.gpu.memory_bytes = value.parse::<Size>().map_err(|e| e.to_string())?.bytes();
        }
        "gpu.efficiency" => fabric.gpu.efficiency = number(value)?,
        "nic.rate" => fabric.nic.rate_bytes_per_s = rate(value)?,
        "nic.count" => fabric.nic.count = number(value)?,
        "nic.class" => {
            fabric.nic.class = serde_json::from_value::<NicClass>(Value::String(value.into()))
                .map_err(|_| "expected infiniband, roce or ethernet".to_owned())?;
        }
        "ethernet.rate" => match &mut fabric.ethernet {
            Some(hop) => hop.rate_bytes_per_s = rate(value)?,
            None => return Err("this cluster has no `ethernet`".into()),
        },
        _ => fabric.intra.rate_bytes_per_s = rate(value)?,
    }
    Ok(())
}

fn set_nodes(cluster: &mut Cluster, index: usize, nodes: u32) -> Result<(), String> {
    if nodes > MOST_NODES {
        return Err(format!("at most {MOST_NODES} nodes can be"));
    }
    cluster.clusters[index].hosts.truncate(nodes as usize);
    while cluster.clusters[index].hosts.len() < nodes as usize {
        add_host(cluster, index);
    }
    Ok(())
}

/// Naming more would take longer than planning.
const MOST_NODES: u32 = 8_192;

/// Through the model's own format, which knows its words.
fn set_model(model: &mut Model, what: &str, value: &str) -> Result<(), String> {
    let mut fields = serde_json::to_value(&*model).map_err(|e| e.to_string())?;
    let parsed = match value {
        "auto" if what == "micro_batch" => Value::Null,
        _ => value.parse::<u32>().map_or_else(|_| Value::String(value.into()), Value::from),
    };
    fields[what] = parsed;
    *model = serde_json::from_value(fields).map_err(|e| e.to_string())?;
    Ok(())
}

fn rate(value: &str) -> Result<f64, String> {
    Ok(value.parse::<Rate>().map_err(|e| e.to_string())?.si())
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "expected a number".to_owned())
}

/// A plan and the plan under other figures.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    /// Closed-form seconds per step of the plan as given.
    pub before_s: f64,
    /// Of the new plan.
    pub after_s: f64,
    /// Tokens per second, before and after.
    pub tokens_per_s: [f64; 2],
    /// The old plan under the new figures, where it still can run.
    pub same_plan_s: Option<f64>,
    /// The new plan; its `solver` has the proof.
    pub plan: Plan,
    /// What is different about it, a line each.
    pub differences: Vec<String>,
}

/// Changes the plan's inventory and model and plans again.
///
/// # Errors
/// [`WhatIfError`].
pub fn what_if(
    plan: &Plan,
    changes: &[String],
    limits: &EngineLimits,
    options: &SearchOptions,
) -> Result<WhatIf, WhatIfError> {
    let (cluster, model) = apply(changes, &plan.cluster, &super::open_model(plan))?;
    let found = search(&cluster, &model, limits, options)?;
    let unsound = |e: crate::search::evaluate::EvaluateError| WhatIfError::Unsound(e.to_string());
    let before_s = evaluate(plan).map_err(unsound)?.iteration_s;
    let after_s = found.plan.solver.as_ref().map_or(f64::NAN, |s| s.objective_s);
    let same_plan_s = (model == super::open_model(plan)).then(|| {
        let same = Plan { cluster, ..plan.clone() };
        let cost = evaluate(&same).ok()?;
        (super::shortage_bytes(&same, &cost) <= 0.0).then_some(cost.iteration_s)
    });
    Ok(WhatIf {
        before_s,
        after_s,
        tokens_per_s: [
            plan.tokens_per_step() as f64 / before_s,
            found.plan.tokens_per_step() as f64 / after_s,
        ],
        same_plan_s: same_plan_s.flatten(),
        differences: compare(plan, &found.plan),
        plan: found.plan,
    })
}

/// How two plans differ, in words.
pub fn compare(before: &Plan, after: &Plan) -> Vec<String> {
    let mut rows: Vec<(String, String, String)> = Vec::new();
    let mut row = |what: &str, of: &dyn Fn(&Plan) -> String| rows.push((what.into(), of(before), of(after)));
    row("GPUs used", &|p| p.world_size().to_string());
    row("replicas", &|p| p.replicas.len().to_string());
    row("microbatch", &|p| p.micro_batch.to_string());
    row("recompute", &|p| format!("{:?}", p.model.recompute).to_lowercase());
    row("pipelines", &shapes);
    row("exchange", &exchanges);
    row("boundary codecs", &codecs);
    for (name, used) in before.cluster.clusters.iter().map(|f| &f.name).zip(words::used_gpus(before)) {
        let position = after.cluster.clusters.iter().position(|f| f.name == *name);
        let now = position.map_or(0, |i| words::used_gpus(after)[i]);
        rows.push((format!("GPUs of {name}"), used.to_string(), now.to_string()));
    }
    rows.retain(|(_, before, after)| before != after);
    rows.into_iter().map(|(what, before, after)| format!("{what}: {before} -> {after}")).collect()
}

/// `8 x [ib: 2 stages, 16 layers; roce: 1 stage, 8 layers]`
fn shapes(plan: &Plan) -> String {
    let cluster_of = words::cluster_by_host(&plan.cluster);
    let name = |stage: &crate::plan::Stage| words::cluster_of_stage(plan, &cluster_of, stage);
    let mut shapes: Vec<(String, usize)> = Vec::new();
    for replica in &plan.replicas {
        let stages = &replica.stages[..];
        let runs = stages.chunk_by(|a, b| name(a) == name(b)).map(|run| {
            let layers: u32 = run.iter().map(|s| s.layers[1] - s.layers[0]).sum();
            let stages = words::plural(run.len(), "stage");
            let team = match run[0].ranks.len() {
                1 => String::new(),
                n => format!(" of {n} GPUs"),
            };
            format!("{}: {stages}{team}, {}", name(&run[0]), words::plural(layers as usize, "layer"))
        });
        let shape = runs.collect::<Vec<_>>().join("; ");
        match shapes.iter_mut().find(|s| s.0 == shape) {
            Some(known) => known.1 += 1,
            None => shapes.push((shape, 1)),
        }
    }
    let told = shapes.iter().take(3).map(|(shape, count)| format!("{count} x [{shape}]"));
    let mut told = told.collect::<Vec<_>>().join(", ");
    if shapes.len() > 3 {
        told += &format!(", and {} shapes more", shapes.len() - 3);
    }
    told
}

fn exchanges(plan: &Plan) -> String {
    let mut kinds: Vec<String> = plan.exchange.iter().map(words::exchange).collect();
    kinds.dedup();
    if kinds.is_empty() { "none".into() } else { kinds.join(" and ") }
}

fn codecs(plan: &Plan) -> String {
    let mut kinds: Vec<String> =
        plan.replicas.iter().flat_map(|r| &r.boundaries).map(|b| words::codec(b.codec)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() { "none".into() } else { kinds.join(", ") }
}

/// The comparison for machines, in SI units.
pub fn json(changes: &[String], what_if: &WhatIf) -> Value {
    serde_json::json!({
        "what_if": changes,
        "before": { "iteration_s": what_if.before_s, "tokens_per_s": what_if.tokens_per_s[0] },
        "same_plan": what_if.same_plan_s.map(|s| serde_json::json!({ "iteration_s": s })),
        "after": { "iteration_s": what_if.after_s, "tokens_per_s": what_if.tokens_per_s[1] },
        "solver": what_if.plan.solver,
        "differences": what_if.differences,
    })
}

/// The comparison as text for a terminal.
pub fn render(changes: &[String], what_if: &WhatIf) -> String {
    let mut lines = vec![format!("what if {}", changes.join(", "))];
    let row = |name: &str, step_s: f64, tokens: f64| {
        format!("  {name:<24} {:>10} per step  {tokens:>12.0} tokens/s", human_time(step_s))
    };
    let [before, after] = what_if.tokens_per_s;
    lines.push(row("before", what_if.before_s, before));
    if let Some(same_s) = what_if.same_plan_s {
        lines.push(row("the same plan then", same_s, before * what_if.before_s / same_s));
    }
    let gain = 100.0 * (after / before - 1.0);
    lines.push(row("planned again", what_if.after_s, after) + &format!("  {gain:+.1} %"));
    if let Some(solver) = &what_if.plan.solver {
        lines.push(format!("  proven within {:.2} % of the best", 100.0 * solver.gap));
    }
    match what_if.differences.as_slice() {
        [] => lines.push("the plan stays the same".into()),
        differences => {
            lines.push("what changes in the plan".into());
            lines.extend(differences.iter().map(|d| format!("  {d}")));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::{fabric, gpt, link};

    fn cluster() -> Cluster {
        Cluster {
            clusters: vec![fabric("ib", 2, 4), fabric("roce-2", 1, 4)],
            links: vec![link("ib", "roce-2", 1e9, 1e-3)],
        }
    }

    fn after(change: &str) -> Result<(Cluster, Model), WhatIfError> {
        apply(&[change.to_owned()], &cluster(), &gpt(8, 64))
    }

    #[test]
    fn keys_reach_links_clusters_and_the_model() {
        let rate = |change: &str| after(change).unwrap().0.links[0].rate_bytes_per_s;
        assert_eq!(rate("link.ib-roce-2.rate=100Gbit/s"), 12.5e9);
        assert_eq!(rate("link.roce-2-ib.rate = 8Gbit/s"), 1e9, "either way round, with spaces");
        let more = after("cluster.ib.nodes=3").unwrap().0;
        assert_eq!(more.clusters[0].hosts[2].name, "ib-2");
        assert_eq!(after("cluster.ib.nodes=1").unwrap().0.clusters[0].hosts.len(), 1);
        assert_eq!(after("cluster.ib.gpu=A100-80G").unwrap().0.clusters[0].gpu.name, "A100-80G");
        assert_eq!(after("cluster.roce-2.nic.class=roce").unwrap().0.clusters[1].nic.class, NicClass::Roce);
        assert_eq!(after("cluster.ib.gpu.memory=2GB").unwrap().0.clusters[0].gpu.memory_bytes, 2_000_000_000);
        assert_eq!(after("model.global_batch=32").unwrap().1.global_batch, 32);
        assert_eq!(after("model.micro_batch=auto").unwrap().1.micro_batch, None);
        assert_eq!(after("link.ib-roce-2.shared=none").unwrap().0.links[0].shared_bytes_per_s, None);
    }

    #[test]
    fn what_cannot_be_is_one_error_with_the_near_key_or_what_is_expected() {
        for (change, words) in [
            ("link.ib-roce.rate", "KEY=VALUE"),
            ("link.ib-roce2.rate=1Gbit/s", "did you mean `link.ib-roce-2.rate`"),
            ("cluster.ib.node=4", "did you mean `cluster.ib.nodes`"),
            ("model.globalbatch=4", "did you mean `model.global_batch`"),
            ("link.ib-roce-2.rate=fast", "Gbit/s"),
            ("link.ib-roce-2.loss=2", "loss"),
            ("cluster.ib.nodes=0", "hosts"),
            ("cluster.ib.nic.class=token-ring", "infiniband"),
            ("cluster.ib.ethernet.rate=1Gbit/s", "no `ethernet`"),
            ("model.micro_batch=3", "divide"),
            ("model.precision=fp23", "fp32"),
        ] {
            let said = after(change).unwrap_err().to_string();
            assert!(said.contains(words) && !said.contains('\n'), "{change}: {said}");
        }
    }

    #[test]
    fn a_wider_link_is_never_worse_and_more_hosts_are_used() {
        let options = SearchOptions { gap: 0.0, ..SearchOptions::default() };
        let found = search(&cluster(), &gpt(8, 64), &EngineLimits::NATIVE, &options).unwrap();
        let ask = |change: &str| {
            what_if(&found.plan, &[change.to_owned()], &EngineLimits::NATIVE, &options).unwrap()
        };
        let wider = ask("link.ib-roce-2.rate=800Gbit/s");
        assert!(wider.after_s <= wider.before_s * (1.0 + 1e-9), "{wider:?}");
        assert!(wider.same_plan_s.is_some_and(|s| s >= wider.after_s * (1.0 - 1e-9)));
        let slower = ask("cluster.ib.nodes=1");
        assert!(slower.after_s > slower.before_s);
        assert!(slower.differences.iter().any(|d| d.starts_with("GPUs of ib: 8 -> ")), "{slower:?}");
        assert!(render(&["x=y".into()], &slower).contains("what changes"));
    }
}
