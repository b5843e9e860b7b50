//! Files that are right: those under `configs/`, what defaults fill in, and plans that come back as they were written.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use narrows_planner::inventory::{self, Cluster, Fabric, NicClass};
use narrows_planner::model::{self, ModelKind, Precision, Recompute};
use narrows_planner::plan::{self, Codec, ExchangeKind, Plan};

const CLUSTER: &str = r#"
[[cluster]]
name = "slow"
nodes = 2
gpus = 4
gpu = { name = "T4", efficiency = 0.4, price = "0.5USD/h" }
intra = "pcie3"
nic = { class = "roce", rate = "50Gbit/s" }
ethernet = "10Gbit/s"

[[cluster]]
name = "toy"
gpus = 1
gpu = { name = "fast", memory = "64MiB", fp32 = "40GFLOP/s" }
intra = { rate = "2GB/s", latency = "10us" }
nic = { class = "ethernet", rate = "1Gbit/s", count = 2, latency = "1 ms" }

[[cluster.host]]
address = "10.0.0.7"

[[cluster.host]]
name = "ben"

[[link]]
between = ["toy", "slow"]
rate = "100Mbit/s"
latency = "20ms"
"#;

const MODEL: &str = "[model]\nkind = \"gpt\"\nlayers = 4\nhidden = 64\nheads = 4\nvocab = 256\nsequence = 32\n\n[train]\nglobal_batch = 12\n";

const PLAN: &str = r#"{ "version": 1, "cluster": "cluster.toml", "model": "model.toml", "micro_batch": 2,
  "schedule": { "kind": "gpipe", "virtual_stages": 1 },
  "replicas": [
    { "microbatches": 5, "stages": [
        { "layers": [0, 3], "ranks": [ { "rank": 2, "host": "slow-0", "gpu": 3, "nic": "roce" } ] },
        { "layers": [3, 4], "ranks": [ { "rank": 0, "host": "slow-1", "gpu": 0, "nic": "ethernet" } ] } ],
      "boundaries": [ { "codec": { "kind": "none" }, "transport": "tcp" } ] },
    { "microbatches": 1, "stages": [
        { "layers": [0, 4], "ranks": [ { "rank": 1, "host": "toy-0", "gpu": 0, "nic": "ethernet" } ] } ] } ],
  "exchange": [ { "replicas": [1, 0], "kind": "sparse", "top_k": 64, "every": 30 } ] }
"#;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [("cluster.toml", CLUSTER), ("model.toml", MODEL), ("plan.json", PLAN)] {
        fs::write(folder.path().join(name), text).expect("a file");
    }
    let path = folder.path().to_owned();
    (folder, path)
}

fn cluster() -> Cluster {
    let (_folder, path) = folder();
    inventory::read(&path.join("cluster.toml")).unwrap_or_else(|e| panic!("{e}"))
}

fn plan() -> Plan {
    let (_folder, path) = folder();
    plan::read(&path.join("plan.json")).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_file_under_configs_can_be_read() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let files = |folder: &str| {
        let entries = fs::read_dir(configs.join(folder)).expect("a folder of configs");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect::<Vec<_>>()
    };
    let (clusters, models) = (files("clusters"), files("models"));
    assert!(clusters.len() >= 10 && models.len() >= 3, "{clusters:?} {models:?}");
    let bad_clusters = clusters.iter().filter_map(|path| inventory::read(path).err());
    let bad_models = models.iter().filter_map(|path| model::read(path).err());
    assert_eq!(bad_clusters.chain(bad_models).map(|e| e.to_string()).collect::<Vec<_>>(), [""; 0]);
}

/// GPUs, clusters and links of the inventories that are named by them.
#[test]
fn inventories_have_the_sizes_they_are_named_by() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/clusters");
    let sizes = |file: &str| {
        let cluster = inventory::read(&configs.join(file)).unwrap_or_else(|e| panic!("{e}"));
        let gpus: usize = cluster.clusters.iter().map(|f| f.hosts.len() * f.gpus as usize).sum();
        let class =
            |f: &Fabric| (f.gpu.name.clone(), f.nic.class, f.nic.rate_bytes_per_s as u64, f.nic.count);
        let classes: HashSet<_> = cluster.clusters.iter().map(class).collect();
        (gpus, classes.len(), cluster.links.len())
    };
    assert_eq!(sizes("four-sites-10240.toml"), (10_240, 16, 16 * 15 / 2));
    assert_eq!(sizes("two-sites-1024.toml"), (1_024, 8, 8 * 7 / 2));
    assert_eq!(sizes("one-site-64.toml"), (64, 4, 6));
    assert_eq!(sizes("swarm-200.toml"), (200, 8, 8 * 7 / 2));
    for environment in ["ib", "roce", "ethernet", "hybrid"] {
        for nodes in [2, 4, 8, 12] {
            assert_eq!(sizes(&format!("holmes-{environment}-{nodes}.toml")).0, nodes * 8);
        }
    }
}

#[test]
fn a_link_between_sites_joins_their_clusters_in_pairs() {
    let (_folder, path) = folder();
    let text = CLUSTER
        .replace("name = \"slow\"", "name = \"slow\"\nsite = \"here\"")
        .replace("name = \"toy\"", "name = \"toy\"\nsite = \"here\"")
        .replace("[\"toy\", \"slow\"]", "[\"here\", \"here\"]\nprice = \"0.02USD/GB\"");
    let far = "\n[[cluster]]\nname = \"far\"\nnodes = 1\ngpus = 1\ngpu = \"T4\"\nintra = \"pcie3\"\nnic = { class = \"ethernet\", rate = \"1Gbit/s\" }\n\n[[link]]\nbetween = [\"far\", \"here\"]\nrate = \"1Gbit/s\"\nlatency = \"9ms\"\n";
    fs::write(path.join("cluster.toml"), text + far).expect("a file");
    let cluster = inventory::read(&path.join("cluster.toml")).unwrap_or_else(|e| panic!("{e}"));
    let joined: Vec<_> =
        cluster.links.iter().map(|l| (l.between[0].as_str(), l.between[1].as_str())).collect();
    assert_eq!(joined, [("slow", "toy"), ("far", "slow"), ("far", "toy")]);
    assert_eq!(cluster.links[0].price_usd_per_byte, Some(0.02 * 1e-9));
    assert_eq!((cluster.links[1].latency_s, cluster.links[1].price_usd_per_byte), (9.0 * 1e-3, None));
}

#[test]
fn models_have_the_sizes_they_are_named_by() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models");
    for (file, billions) in [("gpt-3.6b", 3.6), ("gpt-7.5b", 7.5), ("gpt-39b", 39.1), ("gpt-175b", 174.6)] {
        let model = model::read(&configs.join(format!("{file}.toml"))).unwrap_or_else(|e| panic!("{e}"));
        // The formula of their papers counts a tied head, ours an untied one.
        let tied = model.parameters() - u64::from(model.vocab) * u64::from(model.hidden);
        assert!((tied as f64 / 1e9 - billions).abs() < 0.05, "{file}: {tied}");
    }
    let llama = model::read(&configs.join("llama-3-70b.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(llama.parameters(), 70_553_706_496);
}

#[test]
fn an_inventory_is_resolved_to_si_units_with_every_default() {
    let cluster = cluster();
    let [slow, toy] = &cluster.clusters[..] else { panic!("two clusters") };
    assert_eq!(slow.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["slow-0", "slow-1"]);
    assert_eq!((slow.gpu.fp16_flops_per_s, slow.gpu.efficiency), (65e12, 0.4));
    assert_eq!((slow.gpu.memory_bytes, slow.gpu.price_usd_per_hour), (16_000_000_000, Some(0.5)));
    assert_eq!((slow.intra.rate_bytes_per_s, slow.nic.rate_bytes_per_s), (15.75e9, 6.25e9));
    assert_eq!((slow.nic.count, slow.nic.latency_s), (1, 5e-6));
    assert_eq!(slow.ethernet.map(|e| (e.rate_bytes_per_s, e.latency_s)), Some((1.25e9, 50e-6)));
    assert_eq!(toy.hosts[0].name, "toy-0");
    assert_eq!((toy.hosts[0].address.as_deref(), toy.hosts[1].name.as_str()), (Some("10.0.0.7"), "ben"));
    assert_eq!((toy.gpu.memory_bytes, toy.gpu.bf16_flops_per_s, toy.gpu.efficiency), (64 << 20, 40e9, 0.5));
    assert_eq!((toy.nic.count, toy.nic.latency_s), (2, 1e-3));
    assert_eq!((cluster.links[0].rate_bytes_per_s, cluster.links[0].loss), (12.5e6, 0.0));
    assert_eq!(cluster.host("ben").map(|(fabric, _)| fabric.name.as_str()), Some("toy"));
    assert!(slow.has_nic(NicClass::Ethernet) && slow.has_nic(NicClass::Roce) && !toy.has_nic(NicClass::Roce));
}

#[test]
fn precisions_not_given_follow_from_those_given() {
    let rates = |table: &str| {
        let (_folder, path) = folder();
        let text = CLUSTER.replace("fp32 = \"40GFLOP/s\"", table);
        fs::write(path.join("cluster.toml"), text).expect("a file");
        let gpu = inventory::read(&path.join("cluster.toml")).unwrap_or_else(|e| panic!("{e}")).clusters[1]
            .gpu
            .clone();
        [gpu.bf16_flops_per_s, gpu.fp16_flops_per_s, gpu.fp32_flops_per_s].map(|rate| rate / 1e9)
    };
    assert_eq!(rates("bf16 = \"320GFLOP/s\""), [320.0, 320.0, 20.0]);
    assert_eq!(rates("fp16 = \"320GFLOP/s\", fp32 = \"40GFLOP/s\""), [320.0, 320.0, 40.0]);
    assert_eq!(rates("fp16 = \"320GFLOP/s\", bf16 = \"160GFLOP/s\""), [160.0, 320.0, 10.0]);
}

#[test]
fn a_model_is_resolved_with_every_default() {
    let (_folder, path) = folder();
    let model = model::read(&path.join("model.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((model.kind, model.micro_batch, model.global_batch), (ModelKind::Gpt, None, 12));
    assert_eq!((model.precision, model.recompute), (Precision::Bf16, Recompute::None));
}

#[test]
fn a_plan_by_hand_takes_inventory_and_model_from_their_files() {
    let plan = plan();
    assert_eq!(plan.cluster, cluster());
    assert_eq!((plan.world_size(), plan.tokens_per_step()), (3, 12 * 32));
    assert_eq!(
        plan.seats().iter().map(|seat| seat.placement.host.as_str()).collect::<Vec<_>>(),
        ["slow-1", "toy-0", "slow-0"]
    );
    assert_eq!(plan.replicas[0].boundaries[0].codec, Codec::None);
    assert_eq!(plan.exchange[0].kind, ExchangeKind::Sparse { top_k: 64 });
    assert_eq!((plan.predicted, plan.solver), (None, None));
}

#[test]
fn a_plan_comes_back_as_it_was_written() {
    let (_folder, path) = folder();
    let (mut plan, to) = (plan(), path.join("written.json"));
    for kind in [ExchangeKind::Sparse { top_k: 64 }, ExchangeKind::Streaming, ExchangeKind::Dense] {
        plan.exchange[0].kind = kind;
        plan.exchange[0].every = 1;
        plan.replicas[0].boundaries[0].codec = Codec::Subspace { rank: 8 };
        plan::write(&plan, &to).expect("written");
        assert_eq!(plan::read(&to).unwrap_or_else(|e| panic!("{e}")), plan);
    }
}

#[test]
fn a_plan_that_cannot_be_written_leaves_no_trace() {
    let (_folder, path) = folder();
    let names = || fs::read_dir(&path).expect("the folder").count();
    let before = names();
    plan::write(&plan(), &path.join("plan.json")).expect("written");
    assert_eq!(names(), before, "the new file took the place of the old one");
    // A folder that is not empty cannot be replaced by a file: renaming, the last step, fails.
    fs::create_dir_all(path.join("taken/inside")).expect("a folder");
    let error = plan::write(&plan(), &path.join("taken")).expect_err("a folder is in the way");
    assert!(
        error.to_string().starts_with(&format!("cannot write the plan {}", path.join("taken").display()))
    );
    assert_eq!(names(), before + 1);
}
