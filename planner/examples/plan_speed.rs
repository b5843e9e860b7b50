//! Plans and prints how long it took and what is proven: `plan_speed CLUSTER MODEL [GAP] [LIMIT_S] [native]`.

use std::collections::BTreeMap;
use std::time::Duration;

use narrows_planner::search::{EngineLimits, SearchOptions, search};
use narrows_planner::{inventory, model};

#[allow(clippy::print_stdout)]
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: f64| args.get(i).map_or(default, |a| a.parse().expect("a number"));
    let cluster = inventory::read(args[1].as_ref()).expect("an inventory");
    let model = model::read(args[2].as_ref()).expect("a model");
    let time_limit = Duration::from_secs_f64(number(4, 60.0));
    let options = SearchOptions { gap: number(3, 0.01), time_limit, ..SearchOptions::default() };
    let native = args.get(5).is_some();
    let limits = if native { EngineLimits::NATIVE } else { EngineLimits::ANY };
    match search(&cluster, &model, &limits, &options) {
        Err(error) => println!("{error}"),
        Ok(found) => {
            let plan = &found.plan;
            println!("{:?} flops bound {:.4}", plan.solver, found.flops_bound_s);
            let mut shapes: BTreeMap<String, u32> = BTreeMap::new();
            for (i, replica) in plan.replicas.iter().enumerate() {
                let stages: Vec<String> = replica
                    .stages
                    .iter()
                    .map(|s| {
                        let host = s.ranks[0].host.rsplit_once('-').map_or("", |h| h.0);
                        format!("{host}x{}:{}", s.ranks.len(), s.layers[1] - s.layers[0])
                    })
                    .collect();
                let b = plan.micro_batch_of(i);
                *shapes
                    .entry(format!("{} x {b} of {}", replica.microbatches, stages.join(" ")))
                    .or_default() += 1;
            }
            shapes.iter().for_each(|(shape, count)| println!("{count} x {shape}"));
            let kinds =
                plan.exchange.iter().map(|e| format!("{}r {:?}/{}", e.replicas.len(), e.kind, e.every));
            println!("{}", kinds.collect::<Vec<_>>().join(", "));
        }
    }
}
