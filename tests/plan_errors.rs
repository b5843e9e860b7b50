//! `narrows plan` on input that is malformed, contradicts itself or cannot be met: one error that names the constraint,
//! exit code 2, and no plan. A row takes good files and changes one thing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const CLUSTER: &str = r#"
[[cluster]]
name  = "a"
nodes = 2
gpus  = 1
gpu   = { name = "x", memory = "64MB", fp32 = "20GFLOP/s", price = "2.10USD/h" }
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

const PUBLISHED: &str =
    "[model]\nhuggingface = \"config.json\"\nsequence = 32\n\n[train]\nglobal_batch = 16\n";

const CONFIG: &str = r#"{
  "architectures": ["Qwen2ForCausalLM"],
  "model_type": "qwen2",
  "hidden_size": 64,
  "intermediate_size": 192,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "vocab_size": 256
}
"#;

/// The files as they stand after a change: inventory, model, configuration.
type Files = [(&'static str, String); 3];

fn files(model: &str, (from, to): (&str, &str)) -> Files {
    let good = [("cluster.toml", CLUSTER), ("model.toml", model), ("config.json", CONFIG)];
    let hits: usize = good.iter().map(|(_, text)| text.matches(from).count()).sum();
    assert!(hits > 0, "{from:?} stands in no file");
    good.map(|(name, text)| (name, text.replacen(from, to, 1)))
}

/// What the program says: one error with exit code 2, every `expected` in it.
fn refused(files: &Files, options: &[&str], expected: &[&str]) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("a file");
    }
    let output = plan(folder.path(), options);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors = said.lines().filter(|line| line.starts_with("error:")).count();
    let fault = match () {
        () if output.status.code() != Some(2) => "the exit code is not 2",
        () if errors != 1 => "not one error",
        () if !output.stdout.is_empty() => "something on stdout",
        () if folder.path().join("plan.json").exists() => "a plan was written",
        () => match expected.iter().find(|part| !said.contains(**part)) {
            Some(part) => return Err(format!("{part:?} is not said:\n{said}")),
            None => return Ok(()),
        },
    };
    Err(format!("{fault} ({:?}):\n{said}", output.status.code()))
}

fn plan(folder: &Path, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_narrows"))
        .args(["plan", "cluster.toml", "model.toml", "-o", "plan.json"])
        .args(options)
        .current_dir(folder)
        .output()
        .expect("narrows runs")
}

/// Rows of (from, to, what must be said), on a model and with options.
fn check(model: &str, options: &[&str], rows: &[(&str, &str, &[&str])]) {
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|(from, to, expected)| {
            let error = refused(&files(model, (from, to)), options, expected).err()?;
            Some(format!("{from:?} -> {to:?}: {error}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_inventory_that_cannot_be_is_refused() {
    #[rustfmt::skip]
    check(MODEL, &[], &[
        ("[[link]]", "[[link]", &["cluster.toml:18:", "not TOML"]),
        ("nodes = 2", "nodes = 2\nnodes = 2", &["cluster.toml:5:", "duplicate key"]),
        ("nic   = { class", "nic   = { clas", &["cluster.toml:8:11", "unknown key `clas`", "did you mean `class`?"]),
        ("\"roce\"", "\"rocket\"", &["cluster.toml:8:19", "did you mean `roce`?"]),
        ("count = 1", "count = 0", &["cluster.toml:8:", "a node has 0 NICs, expected at least 1"]),
        ("nodes = 2", "nodes = 0", &["cluster.toml:4:9", "cluster `a` has no nodes"]),
        ("nodes = 2", "nodes = 99999999999", &["cluster.toml:4:9", "expected a whole number from 0 to 4294967295"]),
        ("gpus  = 1", "gpus  = -1", &["cluster.toml:5:9", "found `-1`"]),
        ("\"64MB\"", "\"64Mb\"", &["cluster.toml:6:", "\"Mb\" is not a unit known here"]),
        ("\"64MB\"", "\"0MB\"", &["cluster.toml:6:", "GPU `x` has no memory"]),
        ("\"64MB\"", "\"1e400MB\"", &["cluster.toml:6:", "is too large"]),
        ("fp32 = \"20GFLOP/s\", ", "", &["cluster.toml:6:", "gives no compute rate"]),
        ("\"2.10USD/h\"", "\"-2.10USD/h\"", &["cluster.toml:6:", "\"-2.10USD/h\" is below zero"]),
        ("{ name = \"x\", memory = \"64MB\", fp32 = \"20GFLOP/s\", price = \"2.10USD/h\" }", "\"H1000\"",
            &["cluster.toml:6:", "no GPU `H1000` is built in", "did you mean `H100`?"]),
        ("name  = \"b\"", "name  = \"a\"", &["cluster.toml:11:", "two clusters have the name `a`"]),
        ("[\"a\", \"b\"]", "[\"a\", \"c\"]", &["cluster.toml:19:", "the link joins `c`, but no cluster has that name", "did you mean `a`?"]),
        ("[\"a\", \"b\"]", "[\"a\", \"a\"]", &["cluster.toml:19:", "the link joins `a` to itself"]),
        ("\"100Mbit/s\"", "\"100MB\"", &["cluster.toml:20:", "\"100MB\" is a size, expected a rate"]),
        ("\"100Mbit/s\"", "\"0Mbit/s\"", &["cluster.toml:20:", "`rate` is 0, expected above 0"]),
        ("latency = \"20ms\"", "latency = \"20ms\"\nloss = 1.5", &["cluster.toml:22:", "the loss is 1.5"]),
        ("latency = \"20ms\"", "latency = \"20ms\"\nprice = \"-1USD/GB\"", &["cluster.toml:22:", "is below zero"]),
    ]);
}

#[test]
fn a_model_that_cannot_be_is_refused() {
    #[rustfmt::skip]
    check(MODEL, &[], &[
        ("precision    = \"fp32\"", "precision    = \"fp3", &["model.toml:13:", "not TOML"]),
        ("heads    = 4", "heads    = 5", &["model.toml:6:12", "5 heads do not divide the hidden width 64"]),
        ("heads    = 4", "heads    = 4\nkv_heads = 3", &["model.toml:7:12", "do not divide the 4 heads of queries"]),
        ("sequence = 32", "sequence = 32\npositions = 8", &["model.toml:8:12", "longer than the 8 positions"]),
        ("layers   = 4", "layers   = 0", &["model.toml:4:12", "`layers` is 0, expected 1 to"]),
        ("layers   = 4", "layer    = 4", &["model.toml:4:1", "did you mean `layers`?"]),
        ("\"gpt\"", "\"bert\"", &["model.toml:3:12", "expected one of: gpt, llama"]),
        ("micro_batch  = 1", "micro_batch  = 5", &["model.toml:12:16", "does not divide the global_batch of 16"]),
        ("global_batch = 16", "global_batch = 0", &["model.toml:11:16", "`global_batch` is 0"]),
        ("\"fp32\"", "\"fp64\"", &["model.toml:13:16", "expected one of: bf16, fp16, fp32"]),
        ("[train]", "[trains]", &["model.toml:10:2", "did you mean `train`?"]),
    ]);
}

#[test]
fn a_published_model_that_cannot_be_planned_is_refused() {
    #[rustfmt::skip]
    check(PUBLISHED, &[], &[
        ("\"qwen2\"", "\"qwen2_moe\"", &["config.json:3:17", "`qwen2_moe` cannot be planned"]),
        ("\"vocab_size\"", "\"num_experts\": 8, \"vocab_size\"", &["config.json:3:17", "mixture of experts"]),
        ("\"vocab_size\"", "\"is_encoder_decoder\": true, \"vocab_size\"", &["config.json:3:17", "encoder-decoder"]),
        ("\"hidden_size\": 64", "\"hidden_size\": 65", &["config.json:7:26", "do not divide the hidden width 65"]),
        ("  \"num_hidden_layers\": 4,\n", "", &["config.json:1:1", "missing key `num_hidden_layers`"]),
        ("\"vocab_size\": 256\n}", "\"vocab_size\": 256", &["config.json:9:", "the file seems to be cut off"]),
        ("\"config.json\"", "\"gone.json\"", &["cannot read gone.json"]),
    ]);
}

/// What the files say is possible, but not together: the planner's own errors.
#[test]
fn a_problem_without_a_plan_names_the_constraint_that_cannot_hold() {
    #[rustfmt::skip]
    check(MODEL, &["--native"], &[
        ("precision    = \"fp32\"", "precision    = \"fp32\"\nrecompute = \"full\"", &["recompute = \"full\"", "it can do none"]),
        ("precision    = \"fp32\"", "precision    = \"fp32\"\nexchange = \"streaming\"", &["exchange = \"streaming\"", "dense, sparse"]),
    ]);
    check(
        MODEL,
        &["--time-limit", "0s"],
        &[("layers", "layers", &["no plan found within the time limit of 0 s", "--time-limit"])],
    );
}

/// An infeasible problem: what it lacks, and the change that it says would help.
struct Infeasible {
    /// Made to the good files.
    changes: &'static [(&'static str, &'static str)],
    options: &'static [&'static str],
    /// The constraint that cannot hold, the way out among the others.
    expected: &'static [&'static str],
    /// The way out, made on top.
    way_out: &'static [(&'static str, &'static str)],
    /// Almost that.
    too_little: &'static [(&'static str, &'static str)],
}

const NATIVE: &[&str] = &["--native"];

const INFEASIBLE: &[Infeasible] = &[
    Infeasible {
        changes: &[("layers   = 4", "layers   = 400")],
        options: &[],
        expected: &[
            "a pipeline of 4 stages over a, b that holds 208 of 400 layers",
            "58.0 MB more memory on each GPU",
        ],
        way_out: &[("64MB", "122.1MB")],
        too_little: &[("64MB", "121MB")],
    },
    Infeasible {
        changes: &[("layers   = 4", "layers   = 400")],
        options: &[],
        expected: &["does not fit", "nodes = 11 in a"],
        way_out: &[("name  = \"a\"\nnodes = 2", "name  = \"a\"\nnodes = 11")],
        too_little: &[("name  = \"a\"\nnodes = 2", "name  = \"a\"\nnodes = 4")],
    },
    Infeasible {
        changes: &[("sequence = 32", "sequence = 4096")],
        options: &[],
        expected: &[
            "layer 0 alone needs 693 MB, the largest GPU, `y`, has 64.0 MB",
            "recompute = \"selective\"",
        ],
        way_out: &[("\"fp32\"", "\"fp32\"\nrecompute = \"selective\"")],
        too_little: &[],
    },
    Infeasible {
        changes: &[("sequence = 32", "sequence = 512"), ("micro_batch  = 1", "micro_batch  = 8")],
        options: NATIVE,
        expected: &["layer 0 alone needs 103 MB, the largest GPU, `y`, has 64.0 MB", "micro_batch = 1"],
        way_out: &[("micro_batch  = 8", "micro_batch  = 1")],
        too_little: &[("micro_batch  = 8", "micro_batch  = 2")],
    },
    Infeasible {
        changes: &[("64MB", "600kB")],
        options: NATIVE,
        expected: &[
            "layer 0 alone needs 1.27 MB, the largest GPU, `y`, has 600 kB",
            "1.22 MB more memory on each GPU",
        ],
        way_out: &[("600kB", "1823kB")],
        too_little: &[("600kB", "1800kB")],
    },
    Infeasible {
        changes: &[("layers   = 4", "layers   = 1"), ("256", "2000000")],
        options: &[],
        expected: &["layer 0 alone needs 3.33 GB", "3.27 GB more memory on each GPU"],
        way_out: &[("64MB", "3.34GB")],
        too_little: &[("64MB", "3.30GB")],
    },
    Infeasible {
        changes: &[
            ("[[link]]\nbetween = [\"a\", \"b\"]\nrate    = \"100Mbit/s\"\nlatency = \"20ms\"\n", ""),
            ("64MB", "2MB"),
        ],
        options: NATIVE,
        expected: &["fits only across a and b, which no [[link]] joins", "[[link]] between = [\"a\", \"b\"]"],
        way_out: &[(
            "[[cluster]]\nname  = \"a\"",
            "[[link]]\nbetween = [\"a\", \"b\"]\nrate = \"1Gbit/s\"\nlatency = \"1ms\"\n[[cluster]]\nname  = \"a\"",
        )],
        too_little: &[],
    },
    Infeasible {
        changes: &[("gpus  = 1", "gpus  = 2"), ("vocab    = 256", "vocab    = 60000"), ("64MB", "50MB")],
        options: NATIVE,
        expected: &[
            "layer 0 alone needs 62.5 MB, the largest GPU, `y`, has 50.0 MB",
            "tensor parallelism (plan without --native)",
        ],
        way_out: &[("gpus  = 2", "gpus  = 2")],
        too_little: &[],
    },
    Infeasible {
        changes: &[
            ("gpus  = 1", "gpus  = 2"),
            ("heads    = 4", "heads    = 1"),
            ("vocab    = 256", "vocab    = 60000"),
            ("64MB", "35MB"),
        ],
        options: &[],
        expected: &[
            "layer 0 alone needs 39.1 MB, the largest GPU, `y`, has 35.0 MB",
            "more memory on each GPU",
        ],
        way_out: &[("heads    = 1", "heads    = 2")],
        too_little: &[],
    },
];

#[test]
fn an_infeasible_problem_names_what_it_lacks_and_a_change_that_makes_it_feasible() {
    let changed = |changes: &[&[(&str, &str)]]| -> Files {
        let good = [("cluster.toml", CLUSTER), ("model.toml", MODEL), ("config.json", CONFIG)];
        good.map(|(name, text)| {
            let change = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
            (name, changes.concat().iter().fold(text.to_owned(), change))
        })
    };
    let mut wrong = Vec::new();
    for (index, row) in INFEASIBLE.iter().enumerate() {
        let mut note = |what: String| wrong.push(format!("row {index}: {what}"));
        if let Err(error) = refused(&changed(&[row.changes]), row.options, row.expected) {
            note(error);
        }
        // What the way out asks of the options is to leave --native out.
        let leaves_native = row.expected.iter().any(|e| e.contains("without --native"));
        let options: &[&str] = if leaves_native { &[] } else { row.options };
        if let Ok(()) = refused(&changed(&[row.changes, row.way_out]), options, &[]) {
            note("the way out is none".into());
        }
        if !row.too_little.is_empty()
            && let Err(error) = refused(&changed(&[row.changes, row.too_little]), options, &["does not fit"])
        {
            note(format!("less would do: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_that_is_no_text_or_is_not_there_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("model.toml"), MODEL).expect("a file");
    let said = |output: Output| {
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(plan(folder.path(), &[])).starts_with("error: cannot read cluster.toml: No such file"));
    fs::write(folder.path().join("cluster.toml"), b"[[cluster]]\nname = \"\xff\"\n").expect("a file");
    assert!(said(plan(folder.path(), &[])).contains("cluster.toml:2:9"));
}

#[test]
fn the_schema_is_printed_alone_and_is_json() {
    let narrows = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_narrows")).args(arguments).output().expect("narrows runs")
    };
    let output = narrows(&["plan", "--schema"]);
    assert!(output.status.success());
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema, narrows_planner::schema::plan());
    assert_eq!(narrows(&["plan", "--schema", "cluster.toml"]).status.code(), Some(2));
    assert_eq!(narrows(&["plan", "cluster.toml"]).status.code(), Some(2));
}
