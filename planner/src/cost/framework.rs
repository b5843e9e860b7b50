//! What training frameworks differ in: how often they move what they compute, what they wait for, what they keep.
//!
//! Constants of a framework, never of a run. [`NATIVE`] is what plans are made with; the others exist to judge published
//! runs (`truth`). Each constant was fitted once, over all shipped runs of its framework together, or follows from how
//! the framework is known to work; `docs/cost-model.md` says which.
//!
//! Not here: what a GPU or a network can do (the inventory).

/// How a rank waits for what crosses a stage boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossings {
    /// In flight while the rank computes (this program).
    Overlapped,
    /// The receiver posts its receive when it needs the tensor, and waits for all of it (Megatron-LM).
    ReceiverWaits,
    /// So does the sender (DeepSpeed's pipeline engine: blocking pairs).
    BothWait,
    /// The same, and a tensor-parallel group sends each tensor but once, in parts, with messages about the parts.
    BothWaitForParts,
}

/// When gradients are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// All-reduced after the last backward pass.
    AllReducedAfter,
    /// Reduce-scattered after it, and the updated parameters all-gathered (ZeRO-1).
    ShardedAfter,
    /// The same during the last backward and the first forward pass.
    ShardedDuring,
}

/// Which network the groups of a job use where its hosts' NICs are of unlike classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkChoice {
    /// Each group the class that its members share.
    PerGroup,
    /// All groups the Ethernet, which every host has.
    WholeJob,
}

/// How a tensor-parallel group holds what lies outside its matrices: norms, dropout, residuals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// Every rank all of it.
    Whole,
    /// Every rank a part of the sequence (Korthikanti et al., arXiv 2205.05198).
    Split,
}

/// What a layer keeps for backward, in 16-bit training, per token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saved {
    /// Bytes per unit of width outside the matrices' own inner tensors.
    pub outside: f64,
    /// Who keeps those.
    pub sequence: Sequence,
    /// Bytes per head and per token attended to, where scores are kept.
    pub score: f64,
    /// Bytes per logit (fp32).
    pub logit: f64,
}

/// Constants of a framework.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Framework {
    /// As tables of measured runs name it.
    pub name: &'static str,
    /// How often a pass moves each byte that forward keeps, attention scores apart: kernels that are not fused.
    pub moves_of_saved: f64,
    /// How often it moves each byte of attention scores; 0 with flash attention.
    pub moves_of_scores: f64,
    /// Share of attention's products that are computed; 1/2 where the masked half is skipped.
    pub attention_share: f64,
    /// Least seconds of a layer's pass: its kernels are launched one by one.
    pub launch_s: f64,
    /// Bytes moved per logit over all three passes.
    pub logit_moves_bytes: f64,
    /// Seconds to begin a collective.
    pub collective_s: f64,
    /// Bytes that the optimiser's step moves per parameter.
    pub step_moves_bytes: f64,
    /// Seconds of a step outside everything else: logging, loss scale, data.
    pub step_s: f64,
    /// What forward keeps.
    pub saved: Saved,
    /// Boundaries.
    pub crossings: Crossings,
    /// Gradients.
    pub gradients: Gradients,
    /// Networks.
    pub network: NetworkChoice,
}

/// Dropout masks, and scores before and after dropout: Korthikanti et al., arXiv 2205.05198.
const WITH_DROPOUT: Saved = Saved { outside: 10.0, sequence: Sequence::Whole, score: 5.0, logit: 4.0 };
/// No masks, scores once; logits, their softmax and its gradient.
const WITHOUT_DROPOUT: Saved = Saved { outside: 8.0, sequence: Sequence::Whole, score: 2.0, logit: 12.0 };

/// Ours, with flash attention: what plans are made with.
pub const NATIVE: Framework = Framework {
    name: "native",
    moves_of_saved: 4.0,
    moves_of_scores: 0.0,
    attention_share: 1.0,
    launch_s: 0.4e-3,
    logit_moves_bytes: 160.0,
    collective_s: 0.0,
    step_moves_bytes: 50.0,
    step_s: 0.0,
    saved: WITH_DROPOUT,
    crossings: Crossings::Overlapped,
    gradients: Gradients::AllReducedAfter,
    network: NetworkChoice::PerGroup,
};

/// Megatron-LM of 2021 and Megatron-DeepSpeed as vTrain ran it: scores in memory, kernels launched one by one.
pub const MEGATRON: Framework = Framework {
    name: "megatron",
    moves_of_saved: 1.0,
    moves_of_scores: 3.6,
    launch_s: 0.78e-3,
    collective_s: 30e-6,
    crossings: Crossings::ReceiverWaits,
    ..NATIVE
};

/// Megatron-Core: flash attention, gradients and parameters exchanged during compute.
pub const MEGATRON_CORE: Framework = Framework {
    name: "megatron-core",
    attention_share: 0.5,
    saved: Saved { sequence: Sequence::Split, ..WITH_DROPOUT },
    collective_s: 30e-6,
    crossings: Crossings::ReceiverWaits,
    gradients: Gradients::ShardedDuring,
    ..NATIVE
};

/// Megatron-LM as Holmes's authors ran it: flash attention, ZeRO-1 after the passes, one network for the whole job.
pub const MEGATRON_LM: Framework = Framework {
    name: "megatron-lm",
    attention_share: 1.0,
    gradients: Gradients::ShardedAfter,
    network: NetworkChoice::WholeJob,
    ..MEGATRON_CORE
};

/// Megatron-LLaMA: the same with an overlapped optimiser.
pub const MEGATRON_LLAMA: Framework =
    Framework { name: "megatron-llama", gradients: Gradients::ShardedDuring, ..MEGATRON_LM };

/// Megatron-DeepSpeed as Holmes's authors ran it: no flash attention, all-reduce.
pub const MEGATRON_DEEPSPEED: Framework =
    Framework { name: "megatron-deepspeed", network: NetworkChoice::WholeJob, ..MEGATRON };

/// Holmes: Megatron-LLaMA's optimiser, a network a group.
pub const HOLMES: Framework =
    Framework { name: "holmes", network: NetworkChoice::PerGroup, ..MEGATRON_LLAMA };

/// DeepSpeed's pipeline engine as Sailor's authors ran it: fp32, no dropout, blocking boundaries.
pub const DEEPSPEED_PIPELINE: Framework = Framework {
    name: "deepspeed-pipeline",
    saved: WITHOUT_DROPOUT,
    crossings: Crossings::BothWait,
    ..MEGATRON
};

/// DeepSpeed 2021 as AMP's authors ran it on small cloud hosts.
pub const DEEPSPEED_2021: Framework = Framework {
    name: "deepspeed-2021",
    crossings: Crossings::BothWaitForParts,
    logit_moves_bytes: 20.0,
    step_s: 0.45,
    ..MEGATRON
};

/// All frameworks whose runs can be judged.
pub const ALL: [Framework; 9] = [
    NATIVE,
    MEGATRON,
    MEGATRON_CORE,
    MEGATRON_LM,
    MEGATRON_LLAMA,
    MEGATRON_DEEPSPEED,
    HOLMES,
    DEEPSPEED_PIPELINE,
    DEEPSPEED_2021,
];

/// The framework of that name.
pub fn named(name: &str) -> Option<&'static Framework> {
    ALL.iter().find(|f| f.name == name)
}
