//! Small inventories and models for tests.

use crate::inventory::{Cluster, Fabric, Gpu, Hop, Host, Link, Nic, NicClass};
use crate::model::{BoundaryChoice, ExchangeChoice, Model, ModelKind, Optimizer, Precision, Recompute};

/// `hosts` hosts of `gpus` GPUs of 1 TFLOP/s and 1 GB, 10 GB/s buses, one Ethernet NIC of 1 GB/s.
pub fn fabric(name: &str, hosts: u32, gpus: u32) -> Fabric {
    Fabric {
        name: name.into(),
        hosts: (0..hosts).map(|i| Host { name: format!("{name}-{i}"), address: None }).collect(),
        gpus,
        gpu: gpu(1e12, 1_000_000_000),
        intra: Hop { rate_bytes_per_s: 10e9, latency_s: 1e-6 },
        nic: Nic { class: NicClass::Ethernet, rate_bytes_per_s: 1e9, count: 1, latency_s: 1e-5 },
        ethernet: None,
    }
}

/// A GPU that achieves its peak.
pub fn gpu(flops_per_s: f64, memory_bytes: u64) -> Gpu {
    Gpu {
        name: "made-up".into(),
        memory_bytes,
        bf16_flops_per_s: flops_per_s,
        fp16_flops_per_s: flops_per_s,
        fp32_flops_per_s: flops_per_s,
        efficiency: 1.0,
        memory_bytes_per_s: None,
        price_usd_per_hour: None,
        profile: None,
    }
}

/// A link that loses nothing.
pub fn link(a: &str, b: &str, rate_bytes_per_s: f64, latency_s: f64) -> Link {
    Link {
        between: [a.into(), b.into()],
        rate_bytes_per_s,
        shared_bytes_per_s: None,
        latency_s,
        loss: 0.0,
        price_usd_per_byte: None,
    }
}

/// One cluster alone.
pub fn alone(fabric: Fabric) -> Cluster {
    Cluster { clusters: vec![fabric], links: vec![] }
}

/// A small GPT in f32, batch 16 of one sequence each.
pub fn gpt(layers: u32, hidden: u32) -> Model {
    Model {
        kind: ModelKind::Gpt,
        layers,
        hidden,
        heads: 4,
        kv_heads: None,
        head_dim: None,
        mlp_width: None,
        tied_embeddings: false,
        biases: None,
        qk_norm: false,
        positions: None,
        vocab: 256,
        sequence: 128,
        global_batch: 16,
        micro_batch: Some(1),
        precision: Precision::Fp32,
        optimizer: Optimizer::Adamw,
        recompute: Recompute::None,
        exchange: ExchangeChoice::Auto,
        boundary: BoundaryChoice::Auto,
    }
}
