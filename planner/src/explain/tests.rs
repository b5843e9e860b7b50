//! What is said of plans of small inventories.

use super::*;
use crate::inventory::{Cluster, NicClass};
use crate::search::fixture::{fabric, gpt, gpu, link};
use crate::search::search;
use crate::simulate::simulate;

fn found_on(cluster: &Cluster, model: &Model) -> (Found, Explanation) {
    let options = SearchOptions::default();
    let found = search(cluster, model, &EngineLimits::NATIVE, &options).unwrap();
    let explanation = explain_found(&found, &EngineLimits::NATIVE, &options).unwrap();
    (found, explanation)
}

/// A fast cluster and a slow one of too little memory for one host alone.
fn tight() -> Cluster {
    let mut slow = fabric("slow", 2, 1);
    slow.gpu = gpu(0.5e12, 90_000_000);
    let mut fast = fabric("fast", 1, 3);
    fast.gpu.memory_bytes = 90_000_000;
    Cluster { clusters: vec![fast, slow], links: vec![link("fast", "slow", 1e7, 0.02)] }
}

/// Two like clusters of unlike networks, with room.
fn roomy() -> Cluster {
    let (mut a, mut b) = (fabric("ib", 2, 2), fabric("roce", 2, 2));
    (a.nic.class, b.nic.class) = (NicClass::Infiniband, NicClass::Roce);
    Cluster { clusters: vec![a, b], links: vec![link("ib", "roce", 1e8, 1e-3)] }
}

fn found() -> (Found, Explanation) {
    found_on(&tight(), &gpt(8, 256))
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
    for (cluster, least) in [(tight(), 4), (roomy(), 5)] {
        let (found, e) = found_on(&cluster, &gpt(8, 256));
        let bound_s = found.plan.solver.unwrap().bound_s;
        let plans = e.runners_up.iter().filter_map(|other| other.step_s().map(|s| (&other.name, s)));
        let plans: Vec<_> = plans.collect();
        assert!(plans.len() >= least, "{:?}", e.runners_up);
        assert!(plans.iter().all(|(_, step_s)| *step_s >= bound_s * (1.0 - 1e-9)), "{bound_s} {plans:?}");
    }
}

#[test]
fn every_strategy_is_judged_or_says_why_not() {
    let (_, e) = found_on(&tight(), &gpt(8, 256));
    let outcome = |name: &str| &e.runners_up.iter().find(|r| r.name.contains(name)).unwrap().outcome;
    for name in ["Megatron-uniform", "Holmes", "fast alone", "sparse"] {
        outcome(name);
    }
    let runner_up::Outcome::Impossible(why) = outcome("pure data") else { panic!("{:?}", e.runners_up) };
    assert!(why.contains("does not fit"), "{why}");
    let (_, e) = found_on(&roomy(), &gpt(8, 64));
    let pure = e.runners_up.iter().find(|r| r.name.contains("pure data")).unwrap();
    let runner_up::Outcome::Gives { step_s, simulated_s: Some(simulated_s), gpus: 8 } = pure.outcome else {
        panic!("{pure:?}")
    };
    assert!((simulated_s / step_s - 1.0).abs() < 0.5, "{pure:?}");
}

#[test]
fn idle_gpus_have_their_reason() {
    let reasons = |cluster: &Cluster| -> Vec<IdleReason> {
        let (_, e) = found_on(cluster, &gpt(8, 256));
        e.idle.iter().map(|i| i.reason).collect()
    };
    let mut apart = roomy();
    apart.links.clear();
    assert_eq!(reasons(&apart), [IdleReason::NoLink], "one of the two");
    let mut slow = roomy();
    slow.clusters[1].gpu = gpu(1e9, 1_000_000_000);
    assert!(matches!(reasons(&slow)[..], [IdleReason::TooSlow { .. }]), "{:?}", reasons(&slow));
    let mut few = gpt(1, 64);
    few.global_batch = 2;
    let (found, e) = found_on(&roomy(), &few);
    assert_eq!(found.plan.replicas.len(), 2, "one sequence each");
    assert!(e.idle.iter().any(|i| i.reason == IdleReason::Batch { microbatches: 2 }), "{:?}", e.idle);
    assert!(found_on(&tight(), &gpt(8, 256)).1.idle.iter().all(|i| i.gpus <= i.of && i.gpus > 0));
}

#[test]
fn more_of_what_binds_is_worth_more() {
    let mut narrow = tight();
    narrow.links[0].rate_bytes_per_s = 1e5;
    let options = SearchOptions { gap: 0.0, ..SearchOptions::default() };
    let found = search(&narrow, &gpt(8, 256), &EngineLimits::NATIVE, &options).unwrap();
    let time = Duration::from_secs(20);
    let e = explain_fully(&found.plan, &EngineLimits::NATIVE, &options, time).unwrap();
    assert!(!e.shadow_prices.is_empty());
    assert!(e.shadow_prices.is_sorted_by(|a, b| a.gain >= b.gain), "{:?}", e.shadow_prices);
    assert!(e.shadow_prices.iter().all(|p| p.gain > 0.005));
    let gain = |word: &str| e.shadow_prices.iter().find(|p| p.change.contains(word)).map_or(0.0, |p| p.gain);
    assert!(
        gain("fast~slow at 2x").max(gain("memory")).max(gain("one host more")) > 0.05,
        "{:?}",
        e.shadow_prices
    );
}

#[test]
fn the_text_names_clusters_bottleneck_bound_and_runners_up() {
    let (found, e) = found();
    let text = render(&found.plan, &e);
    for word in ["fast", "slow", "bottleneck:", "proof:", "runners-up", "fast alone", "memory", "A0"] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
    assert!(text.lines().count() < 80, "{text}");
    assert!(text.is_ascii());
    let style = Style { columns: 60, colours: text::Colours::Ansi };
    assert!(render_in(&found.plan, &e, style).contains("\x1b[36mA0"), "replicas have colours on a terminal");
}

#[test]
fn the_page_is_well_formed_self_contained_and_shows_every_part() {
    let mut cluster = tight();
    cluster.clusters[0].name = "fast<&\">".into();
    cluster.links[0].between[0] = "fast<&\">".into();
    let (found, e) = found_on(&cluster, &gpt(8, 256));
    let page = page(&found.plan, &e, &simulate(&found.plan).unwrap());
    for id in ["placement", "timeline", "parts", "memory", "runners-up", "proof"] {
        assert!(page.contains(&format!("<section id=\"{id}\"")), "no {id}");
    }
    assert!(page.contains("class=\"f\"") && page.contains("class=\"b\""), "the timeline has bars");
    assert!(page.contains("fast&lt;&amp;&quot;&gt;") && !page.contains("fast<&"), "text is escaped");
    for outside in ["http:", "https:", "src=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "the page reaches out: {outside}");
    }
    assert_eq!(unclosed(&page), Vec::<String>::new());
}

/// Elements that are opened and not closed in order, void ones aside.
fn unclosed(page: &str) -> Vec<String> {
    let mut open: Vec<String> = Vec::new();
    let body = page.split("</style>").nth(1).expect("the style ends");
    for tag in body.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default()) {
        let name = |tag: &str| tag.split([' ', '\n']).next().unwrap_or_default().to_owned();
        match tag.strip_prefix('/') {
            Some(end) if open.last() == Some(&name(end)) => drop(open.pop()),
            Some(end) => open.push(format!("/{}", name(end))),
            None if tag.ends_with('/') => {}
            None => open.push(name(tag)),
        }
    }
    // What the head before the style opened.
    open.retain(|tag| !["/head", "/html"].contains(&tag.as_str()));
    open
}
