//! Files as people get them wrong. Each row takes a good file, changes one thing, and says what must be reported:
//! line:column, what is wrong, and the way out.

use std::path::Path;

use narrows_planner::input::InputError;
use narrows_planner::{inventory, model, plan};

const CLUSTER: &str = r#"[[cluster]]
name = "ib"
nodes = 2
gpus = 2
gpu = "A100-80G"
intra = "nvlink"
nic = { class = "infiniband", rate = "200Gbit/s", count = 2, latency = "5us" }
ethernet = "25Gbit/s"

[[cluster]]
name = "lab"
gpus = 1
gpu = { name = "fast", memory = "64MiB", fp32 = "40GFLOP/s", efficiency = 1.0, price = "2.10USD/h" }
intra = { rate = "2GB/s", latency = "10us" }
nic = { class = "ethernet", rate = "1Gbit/s" }

[[cluster.host]]
name = "anna"
address = "user@anna.lab"

[[cluster.host]]
name = "ben"

[[link]]
between = ["ib", "lab"]
rate = "100Mbit/s"
shared = "150Mbit/s"
latency = "20ms"
loss = 0.001
"#;

const MODEL: &str = r#"[model]
kind = "gpt"
layers = 6
hidden = 64
heads = 4
vocab = 256
sequence = 32

[train]
global_batch = 24
micro_batch = 2
precision = "fp32"
"#;

const PLAN: &str = r#"{
  "version": 1,
  "cluster": "cluster.toml",
  "model": "model.toml",
  "micro_batch": 2,
  "schedule": { "kind": "1f1b", "virtual_stages": 1 },
  "replicas": [
    { "microbatches": 8,
      "stages": [
        { "layers": [0, 4], "ranks": [ { "rank": 0, "host": "ib-0", "gpu": 0, "nic": "infiniband" } ] },
        { "layers": [4, 6], "ranks": [ { "rank": 1, "host": "ib-1", "gpu": 1, "nic": "infiniband" } ] }
      ],
      "boundaries": [ { "codec": { "kind": "subspace", "rank": 8 }, "transport": "tcp" } ] },
    { "microbatches": 4,
      "stages": [
        { "layers": [0, 6], "ranks": [ { "rank": 2, "host": "anna", "gpu": 0, "nic": "ethernet" } ] }
      ] }
  ],
  "exchange": [ { "replicas": [0, 1], "kind": "sparse", "top_k": 64, "every": 30 } ]
}
"#;

/// What reading `file` says with `from`, which stands there once, changed to `to`; the other files are good.
fn read_changed(file: &str, from: &str, to: &str) -> Result<(), InputError> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [("cluster.toml", CLUSTER), ("model.toml", MODEL), ("plan.json", PLAN)] {
        assert!(name != file || text.matches(from).count() == 1, "{from:?} must stand once in {name}");
        let text = if name == file { text.replacen(from, to, 1) } else { text.into() };
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    read(&folder.path().join(file))
}

fn read(path: &Path) -> Result<(), InputError> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("cluster.toml") => inventory::read(path).map(drop),
        Some("model.toml") => model::read(path).map(drop),
        _ => plan::read(path).map(drop),
    }
}

/// `line:column what; hint`.
fn told(error: &InputError) -> String {
    let (line, column) = error.line_and_column().unwrap_or_default();
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{line}:{column} {}{hint}", error.message())
}

/// Rows of (from, to, what must be told).
fn check(file: &str, rows: &[(&str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (from, to, expected) in rows {
        let told = read_changed(file, from, to).map_or_else(|error| told(&error), |()| "nothing".into());
        if told != *expected {
            wrong.push(format!("{from:?} -> {to:?}\n    told     {told}\n    expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{file}:\n{}", wrong.join("\n"));
}

#[test]
fn an_inventory_that_cannot_be_says_why() {
    #[rustfmt::skip]
    check("cluster.toml", &[
        ("nodes = 2", "ndoes = 2",
            "3:1 cluster[0]: unknown key `ndoes`; did you mean `nodes`?"),
        ("nodes = 2", "nodes = 0",
            "3:9 cluster `ib` has no nodes"),
        ("nodes = 2", "nodes = 4000000000",
            "3:9 cluster `ib` has 4000000000 nodes, at most 65536 can be"),
        ("nodes = 2", r#"nodes = "2""#,
            r#"3:9 cluster[0].nodes: expected a whole number from 0 to 4294967295, found the text "2""#),
        ("nodes = 2", "nodes = 2.5",
            "3:9 cluster[0].nodes: expected a whole number from 0 to 4294967295, found `2.5`"),
        ("nodes = 2", "nodes = -2",
            "3:9 cluster[0].nodes: expected a whole number from 0 to 4294967295, found `-2`"),
        ("nodes = 2", "nodes = 2024-11-24",
            "3:9 cluster[0].nodes: expected a whole number from 0 to 4294967295, found a date"),
        ("nodes = 2\n", "",
            "1:1 cluster `ib` has neither `nodes` nor [[cluster.host]] entries; give the number of nodes: `nodes = 4`"),
        ("gpus = 2", "gpus = 0",
            "4:8 cluster `ib` has 0 GPUs per node, expected 1 to 1024"),
        ("gpus = 2\n", "",
            "1:1 cluster[0]: missing key `gpus`"),
        (r#""A100-80G""#, r#""A100-80""#,
            r#"5:7 no GPU `A100-80` is built in; did you mean `A100-80G`? (or describe it: `gpu = { name = "A100-80", memory = "80GB", bf16 = "312TFLOP/s" }`)"#),
        (r#""A100-80G""#, "7",
            "5:7 cluster[0].gpu: expected a text or a table, found `7`"),
        (r#""A100-80G""#, r#"{ name = "own", fp32 = "1TFLOP/s" }"#,
            r#"5:7 GPU `own` is not built in and its table gives no memory; give it, as in `memory = "80GB"`"#),
        (r#""A100-80G""#, r#"{ name = "own", memory = "1GB" }"#,
            r#"5:7 GPU `own` is not built in and its table gives no compute rate; give it, as in `bf16 = "312TFLOP/s"`"#),
        (r#""A100-80G""#, r#"{ name = "H100", memory = "0GB" }"#,
            "5:33 GPU `H100` has no memory"),
        (r#""A100-80G""#, r#"{ name = "H100", bf16 = "0TFLOP/s" }"#,
            "5:31 `bf16` is 0, expected above 0"),
        (r#""nvlink""#, r#""nvlink9""#,
            r#"6:9 no connection `nvlink9` is built in; did you mean `nvlink`? (or describe it: `intra = { rate = "300GB/s", latency = "2us" }`)"#),
        (r#""nvlink""#, r#""token ring""#,
            r#"6:9 no connection `token ring` is built in; known here: `nvlink`, `nvlink2`, `nvlink3`, `nvlink4`, `nvlink5`, `pcie3`, `pcie4` and `pcie5` (or describe it: `intra = { rate = "300GB/s", latency = "2us" }`)"#),
        (r#"{ name = "fast""#, r#"{ nam = "fast""#,
            "13:9 cluster[1].gpu: unknown key `nam`; did you mean `name`?"),
        (r#"memory = "64MiB""#, r#"memory = "64Mib""#,
            r#"13:33 cluster[1].gpu.memory: "Mib" is not a unit known here, expected a size such as "80GB""#),
        (r#"memory = "64MiB""#, "memory = 64",
            r#"13:33 cluster[1].gpu.memory: expected a size such as "80GB", found `64`"#),
        (r#"fp32 = "40GFLOP/s""#, r#"fp32 = "40GB/s""#,
            r#"13:49 cluster[1].gpu.fp32: "40GB/s" is a rate, expected a compute rate such as "312TFLOP/s""#),
        ("efficiency = 1.0", "efficiency = 1.5",
            "13:75 the efficiency of GPU `fast` is 1.5, expected above 0 and at most 1; it is the share of the peak rate that training achieves"),
        ("efficiency = 1.0", "efficiency = nan",
            "13:75 the efficiency of GPU `fast` is NaN, expected above 0 and at most 1; it is the share of the peak rate that training achieves"),
        (r#"price = "2.10USD/h""#, r#"price = "2.10EUR/h""#,
            r#"13:88 cluster[1].gpu.price: "EUR/h" is not a unit known here, expected a price such as "2.10USD/h""#),
        (r#"intra = { rate = "2GB/s", latency = "10us" }"#, r#"intra = "nvlink""#,
            "14:9 which NVLink the GPU `fast` has is not known; name its generation, `nvlink2` to `nvlink5`, or `pcie4`"),
        (r#"class = "infiniband""#, r#"class = "infinband""#,
            "7:17 cluster[0].nic.class: `infinband` is not known here, expected one of: infiniband, roce, ethernet; did you mean `infiniband`?"),
        (r#"rate = "200Gbit/s""#, r#"rate = "200GB""#,
            r#"7:38 cluster[0].nic.rate: "200GB" is a size, expected a rate such as "200Gbit/s""#),
        (r#"rate = "200Gbit/s""#, r#"rate = "0Gbit/s""#,
            "7:38 `rate` is 0, expected above 0"),
        ("count = 2", "count = 0",
            "7:59 a node has 0 NICs, expected at least 1"),
        (r#"latency = "5us""#, r#"latency = "-5us""#,
            r#"7:72 cluster[0].nic.latency: "-5us" is below zero, expected a time such as "1.5ms""#),
        (r#""25Gbit/s""#, r#""25""#,
            r#"8:12 "25" has no unit, expected a rate such as "200Gbit/s""#),
        (r#"name = "lab""#, r#"name = "ib""#,
            "11:8 two clusters have the name `ib`"),
        (r#"name = "lab""#, r#"name = "-oProxyCommand""#,
            r#"11:8 "-oProxyCommand" cannot be the name of a cluster; use letters, digits, `-`, `_` and `.`, with a letter or digit first"#),
        (r#"name = "lab""#, "name = \"lab\"\nnodes = 2",
            "12:9 cluster `lab` has both `nodes` and [[cluster.host]] entries; the entries are counted: leave `nodes` out"),
        (r#"name = "ben""#, r#"name = "anna""#,
            "22:8 two hosts have the name `anna`"),
        (r#"name = "ben""#, r#"name = "ib-0""#,
            "22:8 two hosts have the name `ib-0`"),
        (r#""user@anna.lab""#, r#""-user""#,
            r#"19:11 "-user" is no address that ssh could take"#),
        (r#"["ib", "lab"]"#, r#"["ib", "labs"]"#,
            "25:18 the link joins `labs`, but no cluster has that name; did you mean `lab`?"),
        (r#"["ib", "lab"]"#, r#"["ib", "ib"]"#,
            "25:11 the link joins `ib` to itself; a link is between clusters; inside one everything reaches everything over `nic`"),
        (r#"["ib", "lab"]"#, r#"["ib"]"#,
            "25:11 link[0].between: expected a list of length 2, found one of length 1"),
        (r#"["ib", "lab"]"#, r#""ib""#,
            r#"25:11 link[0].between: expected a list of length 2, found the text "ib""#),
        ("loss = 0.001", "loss = 1.0",
            "29:8 the loss is 1, expected at least 0 and below 1; it is the share of packets lost: 1% is 0.01"),
        ("loss = 0.001", r#"loss = "1%""#,
            r#"29:8 link[0].loss: expected a number, found the text "1%""#),
        ("loss = 0.001", "los = 0.001",
            "29:1 link[0]: unknown key `los`; did you mean `loss`?"),
        ("loss = 0.001", "[[link]]\nbetween = [\"lab\", \"ib\"]\nrate = \"1Gbit/s\"\nlatency = \"1ms\"",
            "30:11 two links join `lab` and `ib`"),
        (r#"shared = "150Mbit/s""#, r#"shared = "0Mbit/s""#,
            "27:10 `shared` is 0, expected above 0"),
        ("loss = 0.001", "price = \"-0.02USD/GB\"",
            r#"29:9 link[0].price: "-0.02USD/GB" is below zero, expected a price of traffic such as "0.02USD/GB""#),
        ("loss = 0.001", "price = \"2USD/h\"",
            r#"29:9 link[0].price: "2USD/h" is a price, expected a price of traffic such as "0.02USD/GB""#),
        (r#"name = "lab""#, "name = \"lab\"\nsite = \"ib\"",
            "12:8 the site `ib` has the name of a cluster; rename either"),
        (r#"between = ["ib", "lab"]"#, "between = [\"oslo\", \"lab\"]",
            "25:12 the link joins `oslo`, but no cluster has that name; known here: `ib` and `lab`"),
        ("loss = 0.001", "[[lnik]]\nrate = \"1Gbit/s\"",
            "29:3 unknown key `lnik`; did you mean `link`?"),
        ("loss = 0.001", "loss = ",
            "29:8 not TOML: string values must be quoted, expected literal string"),
        ("loss = 0.001", "loss = 0.001\nloss = 0.002",
            "30:1 not TOML: duplicate key"),
        ("loss = 0.001", "loss = 0.001\n\"\\u001b[31m\" = 1",
            "30:1 link[0]: unknown key `\\u{1b}[31m`; known here: `between`, `rate`, `shared`, `latency`, `loss` and `price`"),
    ]);
}

#[test]
fn a_model_that_cannot_be_says_why() {
    #[rustfmt::skip]
    check("model.toml", &[
        ("heads = 4", "heads = 5",
            "5:9 5 heads do not divide the hidden width 64; 4 would divide 64"),
        ("heads = 4", "heads = 0",
            "5:9 `heads` is 0, expected 1 to 1048576"),
        ("layers = 6", "layers = 0",
            "3:10 `layers` is 0, expected 1 to 65536"),
        ("hidden = 64", "hidden = 4294967296",
            "4:10 model.hidden: expected a whole number from 0 to 4294967295, found `4294967296`"),
        ("hidden = 64", "hidden = 4294967295",
            "4:10 `hidden` is 4294967295, expected 1 to 1048576"),
        ("heads = 4", "heads = 4\nkv_heads = 3",
            "6:12 3 heads of keys and values do not divide the 4 heads of queries; 2 would divide 4"),
        ("heads = 4", "heads = 4\nkv_heads = 8",
            "6:12 8 heads of keys and values do not divide the 4 heads of queries; 4 would divide 4"),
        ("heads = 4", "heads = 4\nhead_dim = 1048576",
            "6:12 4 heads of width 1048576 are wider than 1048576 in all"),
        ("heads = 4", "heads = 4\nmlp_width = 0",
            "6:13 `mlp_width` is 0, expected 1 to 4194304"),
        ("heads = 4", "heads = 4\nbiases = \"some\"",
            "6:10 model.biases: `some` is not known here, expected one of: none, qkv, attention, all; did you mean `none`?"),
        ("heads = 4", "heads = 4\ntied_embeddings = \"yes\"",
            "6:19 model.tied_embeddings: expected a boolean, found the text \"yes\""),
        ("sequence = 32", "sequence = 32\npositions = 16",
            "7:12 a sequence of 32 tokens is longer than the 16 positions of the model"),
        (r#"kind = "gpt""#, "kind = \"llama\"\npositions = 64",
            "3:13 a llama has no table of positions: it turns queries and keys instead; leave `positions` out"),
        (r#""gpt""#, r#""gtp""#,
            "2:8 model.kind: `gtp` is not known here, expected one of: gpt, llama; did you mean `gpt`?"),
        (r#""gpt""#, "3",
            "2:8 model.kind: expected one of: gpt, llama, found `3`"),
        ("micro_batch = 2", "micro_batch = 5",
            "11:15 a micro_batch of 5 does not divide the global_batch of 24; 4 would divide 24"),
        ("micro_batch = 2", "microbatch = 2",
            "11:1 train: unknown key `microbatch`; did you mean `micro_batch`?"),
        ("micro_batch = 2", "micro_batch = 0",
            "11:15 `micro_batch` is 0, expected 1 to 16777216"),
        (r#""fp32""#, r#""fp8""#,
            "12:13 train.precision: `fp8` is not known here, expected one of: bf16, fp16, fp32; did you mean `fp16`?"),
        (r#""fp32""#, "\"fp32\"\noptimizer = \"sgd\"",
            "13:13 train.optimizer: `sgd` is not known here, expected one of: adamw"),
        (r#""fp32""#, "\"fp32\"\nexchange = \"dens\"",
            "13:12 train.exchange: `dens` is not known here, expected one of: dense, streaming, sparse, auto; did you mean `dense`?"),
        ("global_batch = 24\n", "",
            "9:1 train: missing key `global_batch`"),
        ("[train]", "[trian]",
            "9:2 unknown key `trian`; did you mean `train`?"),
        ("vocab = 256", "vocab = true",
            "6:9 model.vocab: expected a whole number from 0 to 4294967295, found `true`"),
    ]);
}

#[test]
fn a_plan_that_does_not_hold_together_says_where() {
    #[rustfmt::skip]
    check("plan.json", &[
        (r#""version": 1"#, r#""version": 2"#,
            "2:14 the plan is of version 2, expected 1; make it again with `narrows plan`"),
        (r#""version": 1,"#, "",
            "1:1 missing key `version`"),
        (r#""schedule""#, r#""schedul""#,
            "6:3 unknown key `schedul`; did you mean `schedule`?"),
        (r#""1f1b""#, r#""2f2b""#,
            "6:25 schedule.kind: `2f2b` is not known here, expected one of: gpipe, 1f1b; did you mean `1f1b`?"),
        (r#""virtual_stages": 1"#, r#""virtual_stages": 0"#,
            "6:51 `virtual_stages` is 0, expected at least 1; 1 is a plain pipeline, more are interleaved"),
        (r#""micro_batch": 2"#, r#""micro_batch": 0"#,
            "5:18 `micro_batch` is 0, expected at least 1"),
        (r#""micro_batch": 2"#, r#""micro_batch": 4"#,
            "5:18 the plan's micro_batch is 4, but its model asks for 2"),
        ("[0, 4]", "[0, 5]",
            "11:21 stage 1 of replica 0 has layers 4..6, but layer 4 is already in stage 0"),
        ("[0, 4]", "[0, 3]",
            "11:21 stage 1 of replica 0 has layers 4..6, but layers 3..4 are in no stage"),
        ("[0, 4]", "[0, 0]",
            "10:21 stage 0 of replica 0 has layers 0..0, which are none"),
        ("[0, 4]", "[0]",
            "10:21 replicas[0].stages[0].layers: expected a list of length 2, found one of length 1"),
        ("[4, 6]", "[4, 5]",
            "11:21 layers 5..6 of the model are in no stage of replica 0"),
        ("[4, 6]", "[4, 7]",
            "11:21 stage 1 of replica 0 has layers 4..7, but the model has layers 0..6"),
        ("[0, 6]", "[1, 6]",
            "16:21 stage 0 of replica 1 has layers 1..6, but layers 0..1 are in no stage"),
        (r#""rank": 2"#, r#""rank": 1"#,
            "16:50 rank 1 (replica 1, stage 0) stands twice: it is rank 1 (replica 0, stage 1) as well"),
        (r#""rank": 2"#, r#""rank": 3"#,
            "16:50 rank 3 (replica 1, stage 0) is beyond the 3 ranks of the plan, which are 0..3"),
        (r#""rank": 2"#, r#""rank": -2"#,
            "16:50 replicas[1].stages[0].ranks[0].rank: expected a whole number from 0 to 4294967295, found `-2`"),
        (r#""anna""#, r#""ana""#,
            "16:61 rank 2 (replica 1, stage 0) is on host `ana`, which the inventory does not have; did you mean `anna`?"),
        (r#""anna", "gpu": 0, "nic": "ethernet""#, r#""ib-0", "gpu": 0, "nic": "infiniband""#,
            "16:76 rank 2 (replica 1, stage 0) is on GPU 0 of `ib-0`, which rank 0 (replica 0, stage 0) has"),
        (r#""gpu": 1"#, r#""gpu": 2"#,
            "11:76 rank 1 (replica 0, stage 1) is on GPU 2 of `ib-1`, which has GPUs 0..2"),
        (r#""nic": "ethernet""#, r#""nic": "roce""#,
            "16:86 rank 2 (replica 1, stage 0) uses `roce`, which host `anna` does not have; it has `ethernet`"),
        (r#""kind": "subspace", "rank": 8"#, r#""kind": "subspace", "rank": 64"#,
            "13:64 the subspace behind stage 0 of replica 0 has rank 64, expected 1 to 63 (hidden width 64)"),
        (r#""kind": "subspace", "rank": 8"#, r#""kind": "subspace""#,
            "13:34 replicas[0].boundaries[0].codec: missing key `rank`"),
        (r#""kind": "subspace", "rank": 8"#, r#""kind": "int4""#,
            "13:44 replicas[0].boundaries[0].codec.kind: `int4` is not known here, expected one of: none, bf16, int8, subspace; did you mean `int8`?"),
        (r#"[ { "codec": { "kind": "subspace", "rank": 8 }, "transport": "tcp" } ]"#, "[]",
            "13:21 replica 0 has 0 boundaries, expected 1 between 2 stages"),
        (r#""transport": "tcp""#, r#""transport": "carrier pigeon""#,
            "13:82 replicas[0].boundaries[0].transport: `carrier pigeon` is not known here, expected one of: shm, tcp, rdma, nccl"),
        (r#""microbatches": 8"#, r#""microbatches": 0"#,
            "8:23 replica 0 has no microbatches"),
        (r#""microbatches": 8"#, r#""microbatches": 9"#,
            "8:23 the replicas have 13 microbatches of 2 sequences, 26 in all; the model's global_batch is 24"),
        (r#""microbatches": 8"#, r#""microbatches": 4294967295"#,
            "8:23 the replicas have 4294967299 microbatches of 2 sequences, 8589934598 in all; the model's global_batch is 24"),
        (r#""replicas": [0, 1]"#, r#""replicas": [0, 2]"#,
            "19:35 exchange 0 names replica 2, but the plan has replicas 0..2"),
        (r#""replicas": [0, 1]"#, r#""replicas": [0, 0]"#,
            "19:35 exchange 0 names replica 0 twice"),
        (r#""replicas": [0, 1]"#, r#""replicas": [0]"#,
            "19:31 exchange 0 is not between at least two replicas"),
        (r#"[ { "replicas": [0, 1], "kind": "sparse", "top_k": 64, "every": 30 } ]"#, "[]",
            "19:15 no exchange keeps replica 1 equal to replica 0"),
        (r#""every": 30"#, r#""every": 0"#,
            "19:79 exchange 0 is every 0 steps, expected at least 1"),
        (r#""kind": "sparse", "top_k": 64"#, r#""kind": "dense""#,
            "19:65 exchange 0 is dense but only every 30 steps; dense exchanges reduce gradients, every step; pseudo-gradients are `streaming` or `sparse`"),
        (r#""kind": "sparse", "top_k": 64"#, r#""kind": "sparse""#,
            "19:17 exchange[0]: missing key `top_k`: a sparse exchange needs it"),
        (r#""kind": "sparse", "top_k": 64"#, r#""kind": "streaming", "top_k": 64"#,
            "19:17 exchange[0]: `top_k` is of sparse exchanges only"),
        (r#""top_k": 64"#, r#""top_k": 5000"#,
            "19:66 exchange 0 keeps 5000 values of 4096, expected 1 to 4096"),
        (r#""every": 30"#, r#""every": 30, "evry": 1"#,
            "19:83 exchange[0]: unknown key `evry`; did you mean `every`?"),
        (r#""cluster.toml""#, "7",
            "3:14 cluster: expected a text or a table, found `7`"),
        ("1], \"kind\": \"sparse\", \"top_k\": 64, \"every\": 30 } ]\n}\n", "",
            "19:35 not JSON: expected a value, but the file ends inside the `[` of line 19; the file seems to be cut off: write it again"),
        (r#""exchange": [ {"#, r#""exchange" [ {"#,
            "19:14 not JSON: expected `:`, found `[`"),
    ]);
}

/// The good inventory with a change, as the terminal shows what is wrong with it.
fn shown(file: &str, from: &str, to: &str) -> String {
    let error = read_changed(file, from, to).expect_err("a bad file");
    let folder = error.path().parent().expect("a folder").display().to_string();
    error.to_string().replace(&format!("{folder}/"), "")
}

#[test]
fn an_unknown_key_is_shown_with_caret_and_nearest_key() {
    let expected = "\
error: cluster[0]: unknown key `ndoes`
 --> cluster.toml:3:1
  |
3 | ndoes = 2
  | ^^^^^ not a key of this table
  |
  = help: did you mean `nodes`?";
    assert_eq!(shown("cluster.toml", "nodes = 2", "ndoes = 2"), expected);
}

#[test]
fn a_wrong_unit_is_shown_with_the_one_expected() {
    let expected = r#"error: cluster[0].nic.rate: "200GB" is a size, expected a rate such as "200Gbit/s"
 --> cluster.toml:7:38
  |
7 | nic = { class = "infiniband", rate = "200GB", count = 2, latency = "5us" }
  |                                      ^^^^^^^"#;
    assert_eq!(shown("cluster.toml", "\"200Gbit/s\"", "\"200GB\""), expected);
}

#[test]
fn a_plan_cut_off_is_shown_where_it_ends() {
    let expected = r#"error: not JSON: expected a value, but the file ends inside the `[` of line 7
 --> plan.json:7:16
  |
7 |   "replicas": [
  |                ^
  |
  = help: the file seems to be cut off: write it again"#;
    let rest = &PLAN[PLAN.find("\n    { \"microbatches\": 8").expect("the first replica")..];
    assert_eq!(shown("plan.json", rest, ""), expected);
}

#[test]
fn a_rank_twice_is_shown_with_both_places_named() {
    let expected = r#"error: rank 1 (replica 1, stage 0) stands twice: it is rank 1 (replica 0, stage 1) as well
  --> plan.json:16:50
   |
16 |         { "layers": [0, 6], "ranks": [ { "rank": 1, "host": "anna", "gpu": 0, "nic": "ethernet" } ] }
   |                                                  ^ the second"#;
    assert_eq!(shown("plan.json", "\"rank\": 2", "\"rank\": 1"), expected);
}

#[test]
fn a_fault_in_a_file_that_the_plan_names_is_shown_in_that_file() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("plan.json"), PLAN).expect("a file");
    std::fs::write(folder.path().join("cluster.toml"), CLUSTER).expect("a file");
    std::fs::write(folder.path().join("model.toml"), MODEL.replace("heads = 4", "heads = 5"))
        .expect("a file");
    let error = plan::read(&folder.path().join("plan.json")).expect_err("a bad model");
    assert_eq!((error.path(), error.line_and_column()), (&*folder.path().join("model.toml"), Some((5, 9))));
}

#[test]
fn a_fault_of_an_inventory_inside_a_plan_is_shown_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plan.json");
    for (name, text) in [("cluster.toml", CLUSTER), ("model.toml", MODEL), ("plan.json", PLAN)] {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    plan::write(&plan::read(&path).expect("a plan"), &path).expect("written");
    let good = std::fs::read_to_string(&path).expect("a text");
    for (from, to, what) in [
        ("\"loss\": 0.001", "\"loss\": 1.001", "the loss is 1.001, expected at least 0 and below 1"),
        ("\"count\": 2", "\"count\": 0", "a node has 0 NICs, expected at least 1"),
        ("\"rate_bytes_per_s\": 12500000.0", "\"rate_bytes_per_s\": -1", "`rate` is -1, expected above 0"),
        ("\"heads\": 4", "\"heads\": 0", "`heads` is 0, expected 1 to 1048576"),
    ] {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        let bad = good.replace(from, to);
        std::fs::write(&path, &bad).expect("a file");
        let error = plan::read(&path).expect_err("a bad plan");
        let at = bad.find(to).expect("the change") + to.find(": ").expect("a colon") + 2;
        let line = bad[..at].matches('\n').count() + 1;
        let column = at - bad[..at].rfind('\n').expect("a line before");
        assert_eq!((error.message(), error.line_and_column()), (what, Some((line, column))));
    }
}

#[test]
fn a_file_that_is_no_text_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cluster.toml");
    let message = |error: InputError| error.to_string().replace(&folder.path().display().to_string(), "");
    let missing = "error: cannot read /cluster.toml: No such file or directory (os error 2)";
    assert_eq!(message(read(&path).expect_err("missing")), missing);
    std::fs::write(&path, b"[[cluster]]\nname = \"\xff\"\n").expect("a file");
    let error = read(&path).expect_err("not UTF-8");
    assert_eq!(told(&error), "2:9 the file is not UTF-8 text");
    std::fs::remove_file(&path).and_then(|()| std::fs::create_dir(&path)).expect("a folder");
    assert!(
        message(read(&path).expect_err("a folder")).starts_with("error: cannot read /cluster.toml: Is a dir")
    );
}
