//! `narrows plan` and `simulate`, from files to exit codes.

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
optimizer    = "adamw"
"#;

#[test]
fn a_plan_is_written_explained_and_simulated_to_its_own_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let planned = plan(folder.path(), CLUSTER, MODEL);
    let said = text(&planned);
    assert!(planned.status.success(), "{said}");
    assert!(
        said.contains("what goes where") && said.contains("bottleneck") && said.contains("proof"),
        "{said}"
    );
    let path = folder.path().join("plan.json");
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let simulated = narrows(&["simulate", path.to_str().unwrap(), "--json"]);
    let simulated: serde_json::Value = serde_json::from_slice(&simulated.stdout).unwrap();
    assert_eq!(written["predicted"], simulated["predicted"]);
    let (objective, bound) = (&written["solver"]["objective_s"], &written["solver"]["bound_s"]);
    assert!(bound.as_f64().unwrap() <= objective.as_f64().unwrap());
}

#[test]
fn the_same_input_gives_the_same_plan() {
    let plans = [(), ()].map(|()| {
        let folder = tempfile::tempdir().unwrap();
        assert!(plan(folder.path(), CLUSTER, MODEL).status.success());
        let mut plan: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.path().join("plan.json")).unwrap()).unwrap();
        plan["solver"]["wall_s"] = 0.into();
        plan
    });
    assert_eq!(plans[0], plans[1]);
}

#[test]
fn what_cannot_be_planned_is_one_error_with_exit_code_2_and_no_file() {
    let cases: &[(&str, (&str, &str), &[&str])] = &[
        (
            "unknown key",
            ("nic   = { class = \"roce\"", "nic   = { clas = \"roce\""),
            &["cluster.toml:", "`class`"],
        ),
        ("wrong unit", ("rate    = \"100Mbit/s\"", "rate    = \"100MB\""), &["cluster.toml:20:", "Gbit/s"]),
        (
            "no such cluster",
            ("between = [\"a\", \"b\"]", "between = [\"a\", \"c\"]"),
            &["cluster.toml:19:", "\"c\""],
        ),
        (
            "zero GPUs",
            ("nodes = 2\ngpus  = 1\ngpu   = { name = \"x\"", "nodes = 2\ngpus  = 0\ngpu   = { name = \"x\""),
            &["cluster.toml:5:", "gpus"],
        ),
        ("heads", ("heads    = 4", "heads    = 5"), &["model.toml:6:", "heads"]),
        ("batch", ("micro_batch  = 1", "micro_batch  = 5"), &["model.toml:", "micro_batch"]),
        (
            "too large",
            ("layers   = 4", "layers   = 4000"),
            &["model.toml", "does not fit", "lacks", "more memory"],
        ),
        ("truncated", ("optimizer    = \"adamw\"", "optimizer    = \"ada"), &["model.toml:"]),
        ("precision", ("precision    = \"fp32\"", "precision    = \"fp23\""), &["model.toml:", "fp32"]),
    ];
    for (name, (good, bad), expected) in cases {
        assert!(CLUSTER.contains(good) || MODEL.contains(good), "{name}: the case breaks nothing");
        let folder = tempfile::tempdir().unwrap();
        let output = plan(folder.path(), &CLUSTER.replace(good, bad), &MODEL.replace(good, bad));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(expected.iter().all(|e| said.contains(e)), "{name}: {said}");
        assert!(!said.contains("panicked"), "{name}: {said}");
        assert!(!folder.path().join("plan.json").exists(), "{name}");
    }
}

#[test]
fn clusters_that_cannot_reach_each_other_are_named_where_the_model_needs_both() {
    let unlinked = CLUSTER.split("[[link]]").next().unwrap().replace("64MB", "1300kB");
    let folder = tempfile::tempdir().unwrap();
    let output = plan(folder.path(), &unlinked, MODEL);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("[[link]]") || said.contains("does not fit"), "{said}");
}

fn plan(folder: &Path, cluster: &str, model: &str) -> Output {
    fs::write(folder.join("cluster.toml"), cluster).unwrap();
    fs::write(folder.join("model.toml"), model).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    narrows(&["plan", &path("cluster.toml"), &path("model.toml"), "-o", &path("plan.json"), "--native"])
}

fn narrows(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_narrows")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
