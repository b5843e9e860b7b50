//! `narrows explain`, from plan to exit codes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const CLUSTER: &str = r#"
[[cluster]]
name  = "a"
nodes = 2
gpus  = 1
gpu   = { name = "x", memory = "64MB", fp32 = "20GFLOP/s" }
intra = { rate = "8GB/s", latency = "20us" }
nic   = { class = "roce", rate = "10Gbit/s", count = 1, latency = "5us" }

[[cluster]]
name  = "b"
nodes = 2
gpus  = 1
gpu   = { name = "y", memory = "64MB", fp32 = "10GFLOP/s" }
intra = { rate = "8GB/s", latency = "20us" }
nic   = { class = "ethernet", rate = "10Mbit/s", count = 1, latency = "1ms" }

[[link]]
between = ["a", "b"]
rate    = "100Mbit/s"
latency = "20ms"
"#;

const MODEL: &str = r#"
[model]
kind     = "gpt"
layers   = 4
hidden   = 64
heads    = 4
vocab    = 256
sequence = 32

[train]
global_batch = 16
micro_batch  = 1
precision    = "fp32"
"#;

#[test]
fn a_plan_is_explained_as_text_as_json_and_as_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let plan = planned(folder.path());
    let said = narrows(&["explain", &plan, "--native"]);
    assert!(said.status.success(), "{}", text(&said));
    for word in ["where they lie", "bottleneck:", "proof:", "Megatron-uniform", "Holmes"] {
        assert!(text(&said).contains(word), "no {word} in {}", text(&said));
    }
    assert!(!text(&said).contains('\x1b'), "no colours in a pipe");
    let page = folder.path().join("why.html");
    let said = narrows(&["explain", &plan, "--native", "--json", "--html", page.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let parts = json["parts"].as_object().unwrap().values().map(|s| s.as_f64().unwrap()).sum::<f64>();
    assert!((parts / json["iteration_s"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert!(fs::read_to_string(page).unwrap().contains("id=\"timeline\""));
}

#[test]
fn a_what_if_plans_again_and_writes_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let plan = planned(folder.path());
    let then = folder.path().join("then.json");
    let change = "cluster.a.nodes=4";
    let said = narrows(&["explain", &plan, "--native", "--what-if", change, "-o", then.to_str().unwrap()]);
    assert!(said.status.success(), "{}", text(&said));
    assert!(text(&said).contains("before") && text(&said).contains("planned again"), "{}", text(&said));
    let simulated = narrows(&["simulate", then.to_str().unwrap(), "--json"]);
    assert!(simulated.status.success(), "{}", text(&simulated));
}

#[test]
fn an_unknown_key_is_one_error_with_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let plan = planned(folder.path());
    let said = narrows(&["explain", &plan, "--what-if", "link.a-b.rat=1Gbit/s"]);
    assert_eq!(said.status.code(), Some(2), "{}", text(&said));
    assert!(text(&said).contains("did you mean `link.a-b.rate`"), "{}", text(&said));
    assert_eq!(text(&said).lines().count(), 1, "{}", text(&said));
}

fn planned(folder: &Path) -> String {
    fs::write(folder.join("cluster.toml"), CLUSTER).unwrap();
    fs::write(folder.join("model.toml"), MODEL).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (cluster, model, plan) = (path("cluster.toml"), path("model.toml"), path("plan.json"));
    let output = narrows(&["plan", &cluster, &model, "-o", &plan, "--native"]);
    assert!(output.status.success(), "{}", text(&output));
    plan
}

fn narrows(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_narrows")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
