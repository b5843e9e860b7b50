//! Mid-size inventories from a seed: 16 to 64 GPUs, 2 to 4 clusters of unlike GPUs and networks, mostly joined, and a model
//! that needs several of their GPUs.
//!
//! Not here: plans for them (`moves`).

use std::fmt::Write as _;

use super::Instance;
use super::random::Random;
use crate::input::Document;
use crate::inventory;
use crate::model::{BoundaryChoice, ExchangeChoice, Model, ModelKind, Optimizer, Precision, Recompute};

/// A GPU and what joins those of a host.
const GPUS: [(&str, &str); 7] = [
    ("H100", "nvlink"),
    ("A100-80G", "nvlink"),
    ("A100-40G", "nvlink"),
    ("V100-32G", "nvlink"),
    ("L40S", "pcie4"),
    ("L4", "pcie4"),
    ("T4", "pcie3"),
];
const NICS: [&str; 6] = [
    r#"{ class = "infiniband", rate = "200Gbit/s", count = 4 }"#,
    r#"{ class = "infiniband", rate = "100Gbit/s" }"#,
    r#"{ class = "roce", rate = "100Gbit/s", count = 2 }"#,
    r#"{ class = "roce", rate = "25Gbit/s" }"#,
    r#"{ class = "ethernet", rate = "25Gbit/s" }"#,
    r#"{ class = "ethernet", rate = "1Gbit/s" }"#,
];
const LINKS: [&str; 5] = [
    r#"rate = "25Gbit/s", latency = "100us""#,
    r#"rate = "10Gbit/s", latency = "2ms""#,
    r#"rate = "10Gbit/s", latency = "20ms", shared = "20Gbit/s""#,
    r#"rate = "1Gbit/s", latency = "20ms""#,
    r#"rate = "100Mbit/s", latency = "40ms""#,
];

/// The instance of a seed.
pub fn instance(seed: u64) -> Instance {
    let mut random = Random::new(seed);
    let text = loop {
        let (text, gpus) = draw(&mut random);
        if (16..=64).contains(&gpus) {
            break text;
        }
    };
    let cluster = Document::toml_text("generated.toml", &text).and_then(|d| inventory::resolve(&d));
    let cluster = cluster.expect("generated inventories are whole");
    Instance { seed, cluster, model: model(&mut random) }
}

/// An inventory, and how many GPUs it has.
fn draw(random: &mut Random) -> (String, u32) {
    let mut kinds: Vec<usize> = (0..GPUS.len()).collect();
    random.shuffle(&mut kinds);
    let clusters = random.between(2, 4);
    let (mut text, mut gpus) = (String::new(), 0);
    for (index, kind) in (0..clusters).zip(kinds) {
        let (gpu, intra) = GPUS[kind];
        let (nodes, per_node) = (random.between(1, 4), *random.pick(&[1, 2, 4, 8]));
        gpus += nodes * per_node;
        let nic = random.pick(&NICS);
        let _ = writeln!(
            text,
            "[[cluster]]\nname = \"c{index}\"\nnodes = {nodes}\ngpus = {per_node}\ngpu = \"{gpu}\""
        );
        let _ = writeln!(text, "intra = \"{intra}\"\nnic = {nic}");
    }
    for a in 0..clusters {
        for b in a + 1..clusters {
            // Neighbours are always joined, so that no cluster is for itself.
            if b == a + 1 || random.happens(0.8) {
                let link = random.pick(&LINKS).replace(", ", "\n");
                let _ = writeln!(text, "[[link]]\nbetween = [\"c{a}\", \"c{b}\"]\n{link}");
            }
        }
    }
    (text, gpus)
}

/// Of 0.4 to 7 billion parameters.
fn model(random: &mut Random) -> Model {
    let (layers, hidden, heads) =
        *random.pick(&[(24, 1024, 16), (24, 2048, 16), (32, 2560, 32), (32, 4096, 32)]);
    Model {
        kind: ModelKind::Gpt,
        layers,
        hidden,
        heads,
        kv_heads: None,
        head_dim: None,
        mlp_width: None,
        tied_embeddings: false,
        biases: None,
        qk_norm: false,
        positions: None,
        vocab: 51_200,
        sequence: *random.pick(&[1024, 2048]),
        global_batch: *random.pick(&[64, 128, 256]),
        micro_batch: None,
        precision: Precision::Fp16,
        optimizer: Optimizer::Adamw,
        recompute: Recompute::Auto,
        exchange: ExchangeChoice::Auto,
        boundary: BoundaryChoice::Auto,
    }
}
