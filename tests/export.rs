//! `narrows export`, from a plan's file to what another program reads and runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Two clusters that share no RDMA fabric, a host of two GPUs each; two replicas of two stages, cut 3 : 1.
const PLAN: &str = r#"{
  "version": 1, "cluster": "cluster.toml", "model": "model.toml", "micro_batch": 1,
  "schedule": {"kind": "1f1b", "virtual_stages": 1},
  "replicas": [
    {"microbatches": 8, "boundaries": [{"codec": {"kind": "none"}, "transport": "nccl"}], "stages": [
      {"layers": [0, 3], "ranks": [{"rank": 0, "host": "a-0", "gpu": 0, "nic": "infiniband"}]},
      {"layers": [3, 4], "ranks": [{"rank": 1, "host": "b-0", "gpu": 0, "nic": "roce"}]}]},
    {"microbatches": 8, "boundaries": [{"codec": {"kind": "none"}, "transport": "nccl"}], "stages": [
      {"layers": [0, 3], "ranks": [{"rank": 2, "host": "a-0", "gpu": 1, "nic": "infiniband"}]},
      {"layers": [3, 4], "ranks": [{"rank": 3, "host": "b-0", "gpu": 1, "nic": "roce"}]}]}],
  "exchange": [{"replicas": [0, 1], "kind": "dense", "every": 1}]
}"#;

const CLUSTER: &str = r#"
[[cluster]]
name  = "a"
nodes = 1
gpus  = 2
gpu   = "A100-80G"
intra = "nvlink"
nic   = { class = "infiniband", rate = "200Gbit/s" }
ethernet = "25Gbit/s"

[[cluster]]
name  = "b"
nodes = 1
gpus  = 2
gpu   = "A100-80G"
intra = "nvlink"
nic   = { class = "roce", rate = "200Gbit/s" }
ethernet = "25Gbit/s"

[[link]]
between = ["a", "b"]
rate    = "25Gbit/s"
latency = "1ms"
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
"#;

#[test]
fn every_process_that_start_sh_starts_knows_its_rank_and_gpu() {
    let folder = inputs(PLAN);
    let out = folder.path().join("out");
    let exported = export(folder.path(), &["--to", "env", "--ranks", "mesh", "-o", out.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", text(&exported));
    let script = r#"echo "$RANK/$WORLD_SIZE $LOCAL_RANK gpus=$CUDA_VISIBLE_DEVICES replica=$NARROWS_REPLICA stage=$NARROWS_STAGE $1""#;
    let mut lines = Vec::new();
    for host in ["a-0", "b-0"] {
        let started = start(&out, host, &["sh", "-c", script, "sh", "it's"]);
        assert!(started.status.success(), "{}", text(&started));
        lines.extend(String::from_utf8(started.stdout).unwrap().lines().map(str::to_owned));
    }
    lines.sort();
    assert_eq!(
        lines,
        [
            "0/4 0 gpus=0,1 replica=0 stage=0 it's",
            "1/4 1 gpus=0,1 replica=1 stage=0 it's",
            "2/4 0 gpus=0,1 replica=0 stage=1 it's",
            "3/4 1 gpus=0,1 replica=1 stage=1 it's",
        ]
    );
}

#[test]
fn a_rank_that_fails_ends_its_hosts_others_and_gives_its_code() {
    let folder = inputs(PLAN);
    let out = folder.path().join("out");
    assert!(export(folder.path(), &["--to", "env", "-o", out.to_str().unwrap()]).status.success());
    let started = start(&out, "a-0", &["sh", "-c", "[ $RANK = 2 ] && exit 7; exec sleep 600"]);
    assert_eq!(started.status.code(), Some(7), "{}", text(&started));
    let stranger = start(&out, "c-0", &["true"]);
    assert_eq!(stranger.status.code(), Some(2));
    assert!(text(&stranger).contains("NARROWS_HOST"), "{}", text(&stranger));
}

#[test]
fn megatrons_arguments_reach_its_script_as_one_word_each() {
    let folder = inputs(PLAN);
    let out = folder.path().join("out");
    let exported = export(folder.path(), &["--to", "megatron", "-o", out.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", text(&exported));
    // A `python` that shows its arguments; the wrapper is the first of them.
    let shown = folder.path().join("bin/python");
    fs::create_dir(shown.parent().unwrap()).unwrap();
    fs::write(&shown, "#!/bin/sh\nshift\nprintf '<%s>' \"$@\"\n").unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&shown).status().unwrap().success());
    let path = format!("{}:{}", shown.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let run = Command::new("bash")
        .arg(out.join("run.sh"))
        .args(["pretrain_gpt.py", "--data-path", "a b"])
        .envs([("PATH", path.as_str()), ("RANK", "0")])
        .output()
        .unwrap();
    let said = text(&run);
    assert!(said.starts_with("<pretrain_gpt.py><--tensor-model-parallel-size><1>"), "{said}");
    assert!(said.contains("<--pipeline-model-parallel-layout><Et*3|t*1L>"), "{said}");
    assert!(said.ends_with("<--data-path><a b>"), "{said}");
}

#[test]
fn a_refusal_is_one_error_with_exit_code_2_and_no_folder() {
    let cases: &[(&str, (&str, &str), &[&str])] = &[
        ("deepspeed", ("", ""), &["DeepSpeed", "[3, 1]"]),
        ("torchtitan", ("", ""), &["torchtitan", "gpt"]),
        (
            "megatron",
            ("\"kind\": \"dense\", \"every\": 1", "\"kind\": \"sparse\", \"top_k\": 64, \"every\": 30"),
            &["Megatron-LM", "exchange 0 is sparse", "exchange = \"dense\""],
        ),
        (
            "megatron",
            ("\"codec\": {\"kind\": \"none\"}", "\"codec\": {\"kind\": \"int8\"}"),
            &["int8", "boundary"],
        ),
        ("k8s", ("", ""), &["--image"]),
        ("env", ("\"version\": 1", "\"version\": 9"), &["plan.json:2", "version"]),
    ];
    for (target, (good, bad), expected) in cases {
        let folder = inputs(&PLAN.replace(good, bad));
        let out = folder.path().join("out");
        let output = export(folder.path(), &["--to", target, "-o", out.to_str().unwrap()]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{target}: {said}");
        assert!(expected.iter().all(|e| said.contains(e)) && !said.contains("panicked"), "{target}: {said}");
        assert!(!out.exists(), "{target}");
    }
}

#[test]
fn one_file_goes_to_stdout_several_need_a_folder_or_json() {
    let folder = inputs(PLAN);
    let manifest = export(folder.path(), &["--to", "k8s", "--image", "train:1", "--", "python", "train.py"]);
    assert!(String::from_utf8(manifest.stdout).unwrap().contains("kind: \"JobSet\""));
    let several = export(folder.path(), &["--to", "slurm"]);
    assert_eq!(several.status.code(), Some(2));
    assert!(text(&several).contains("-o DIR"), "{}", text(&several));
    let json = export(folder.path(), &["--to", "slurm", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["target"], "slurm");
    assert_eq!(json["files"][0]["path"], "job.sbatch");
}

fn inputs(plan: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("plan.json", plan), ("cluster.toml", CLUSTER), ("model.toml", MODEL)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn export(folder: &Path, arguments: &[&str]) -> Output {
    let plan = folder.join("plan.json");
    Command::new(env!("CARGO_BIN_EXE_narrows")).arg("export").arg(plan).args(arguments).output().unwrap()
}

fn start(out: &Path, host: &str, command: &[&str]) -> Output {
    let mut start = Command::new("bash");
    start.arg(out.join("start.sh")).args(command).env("NARROWS_HOST", host);
    start.output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
