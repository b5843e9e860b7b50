//! torchtitan: a Python module with the configuration (0.3), and TOML with a model to register (0.2.2).
//!
//! ```text
//!   cuts      module_fqns_per_model_part: [["tok_embeddings", "layers.0", …], …, ["layers.29", "norm", "lm_head"]]
//!   dense     data_parallel_replicate_degree = D
//!   ZeRO-1    data_parallel_shard_degree = D, fsdp_reshard_after_forward = "never": gradients reduce-scattered and
//!             parameters all-gathered once a step, the same bytes
//!   pipeline  local_batch_size = microbatches x micro_batch of a replica, split into microbatches; without one, a
//!             microbatch, and the rest accumulates
//! ```
//! Sources: torchtitan 0.3.0 and 0.2.2 (`config`, `distributed/pipeline_parallel.py`, `models/llama3`). torchtitan after
//! 0.3.0 has renamed the microbatch settings. It has no GPT-2 (learned positions) and no fp16.
//!
//! Left to the user: tokenizer, data, learning rate, rotary base, steps (flags of torchtitan, or edits of the file).

use std::fmt::Write as _;

use super::mesh::Mesh;
use super::roster::{Roster, run_script};
use super::{Export, File, Refusal, Settings, Target};
use crate::model::{Biases, Model, ModelKind, Precision, Recompute};
use crate::plan::{Plan, ScheduleKind};

pub(super) fn export(plan: &Plan, settings: &Settings) -> Result<Export, Refusal> {
    let mesh = Mesh::of(plan, Target::Torchtitan)?;
    check(&mesh, &plan.model)?;
    let roster = Roster::new(plan, &mesh.ranks());
    let wrapper = if roster.wrapper().is_some() { "\"$here/narrows_nccl.py\" " } else { "" };
    let command = format!(
        "env PYTHONPATH=\"$here${{PYTHONPATH:+:$PYTHONPATH}}\" \\\n  python {wrapper}-m torchtitan.train --module narrows_plan --config plan \"$@\""
    );
    let about = "torchtitan 0.3 by this plan, on every host: bash DIR/run.sh --hf-assets-path TOKENIZER --training.steps 1000";
    let mut files = vec![
        File::new("narrows_plan.py", python(&mesh, &plan.model)),
        File::new("run.sh", run_script(about, &[], &command)),
    ];
    let mut notes = Vec::new();
    if mesh.recompute == Recompute::Selective {
        notes.push(
            "its fused attention recomputes attention scores by itself: activation checkpointing is off"
                .into(),
        );
    }
    match toml_obstacle(&mesh, &plan.model) {
        None => files.extend(toml(&mesh, &plan.model)),
        Some(why) => notes.push(format!("no TOML for torchtitan 0.2.2: {why}")),
    }
    files.extend(roster.files(settings));
    notes.extend(roster.notes(settings));
    Ok(Export {
        target: Target::Torchtitan,
        files,
        start: "on every host: bash DIR/run.sh --training.steps 1000".into(),
        notes,
    })
}

fn check(mesh: &Mesh, model: &Model) -> Result<(), Refusal> {
    let refuse = |what: &str, help: &str| Err(Target::Torchtitan.refuses(what, help));
    if model.kind == ModelKind::Gpt {
        return refuse(
            "the model is of kind gpt (learned positions), which torchtitan does not have",
            "export to Megatron-LM, or plan a llama",
        );
    }
    if model.biases() != Biases::None
        || model.qk_norm
        || model.head_dim() * u64::from(model.heads) != u64::from(model.hidden)
    {
        return refuse(
            "its llama has biases, normalised queries or heads of another width, and torchtitan's has none of them",
            "export to Megatron-LM",
        );
    }
    if model.tied_embeddings && mesh.pipeline > 1 {
        return refuse(
            "its embeddings are tied over a pipeline, and torchtitan ties them on one rank only",
            "plan with `tied_embeddings = false`, or export to Megatron-LM",
        );
    }
    if model.precision == Precision::Fp16 {
        return refuse(
            "its precision is fp16; torchtitan has bf16 and fp32",
            "plan with `precision = \"bf16\"` under [train] in model.toml",
        );
    }
    if mesh.schedule == ScheduleKind::Gpipe && mesh.virtual_stages > 1 {
        return refuse("gpipe with virtual stages, which PyTorch's pipelines do not have", "plan with 1f1b");
    }
    Ok(())
}

/// What both versions call alike.
struct Settled {
    schedule: &'static str,
    local_batch: u32,
    replicate: u32,
    shard: u32,
    precision: &'static str,
}

fn settled(mesh: &Mesh, model: &Model) -> Settled {
    let local = if mesh.pipeline > 1 { mesh.microbatches } else { 1 };
    Settled {
        schedule: match (mesh.schedule, mesh.virtual_stages) {
            (ScheduleKind::Gpipe, _) => "GPipe",
            (ScheduleKind::OneForwardOneBackward, 1) => "1F1B",
            (ScheduleKind::OneForwardOneBackward, _) => "Interleaved1F1B",
        },
        local_batch: local * mesh.micro_batch,
        replicate: if mesh.zero1 { 1 } else { mesh.data },
        shard: if mesh.zero1 { mesh.data } else { 1 },
        precision: if model.precision == Precision::Fp32 { "float32" } else { "bfloat16" },
    }
}

/// The modules of each stage, as a list that is JSON, Python and TOML at once.
fn parts(mesh: &Mesh, head: &str) -> String {
    let (mut text, mut layer) = (String::from("[\n"), 0);
    let last = mesh.layers.len() - 1;
    for (s, count) in mesh.layers.iter().enumerate() {
        let mut modules: Vec<String> = (layer..layer + count).map(|l| format!("\"layers.{l}\"")).collect();
        layer += count;
        if s == 0 {
            modules.insert(0, "\"tok_embeddings\"".into());
        }
        if s == last {
            modules.extend(["\"norm\"".into(), format!("\"{head}\"")]);
        }
        let _ = writeln!(text, "    [{}],", modules.join(", "));
    }
    text + "]"
}

fn python(mesh: &Mesh, model: &Model) -> String {
    // All fields by name: a new one must be said to torchtitan or refused.
    let Model {
        kind: _,
        layers,
        hidden,
        heads,
        kv_heads: _,
        head_dim: _,
        mlp_width: _,
        tied_embeddings,
        biases: _,
        qk_norm: _,
        positions: _,
        vocab,
        sequence,
        global_batch,
        micro_batch: _,
        precision: _,
        optimizer: _,
        recompute: _,
        exchange: _,
        boundary: _,
    } = model;
    let Settled { schedule, local_batch, replicate, shard, precision } = settled(mesh, model);
    let reshard = if mesh.zero1 { "never" } else { "default" };
    let checkpoint = if mesh.recompute == Recompute::Full { "FullAC.Config()" } else { "None" };
    PYTHON
        .replace("@PARTS@", &if mesh.pipeline > 1 { parts(mesh, "lm_head") } else { "None".into() })
        .replace("@LAYERS@", &layers.to_string())
        .replace("@HIDDEN@", &hidden.to_string())
        .replace("@HEADS@", &heads.to_string())
        .replace("@KV_HEADS@", &model.kv_heads().to_string())
        .replace("@TIED@", if *tied_embeddings { "True" } else { "False" })
        .replace("@VOCAB@", &vocab.to_string())
        .replace("@SEQUENCE@", &sequence.to_string())
        .replace("@MLP@", &model.mlp_width().to_string())
        .replace("@LOCAL@", &local_batch.to_string())
        .replace("@GLOBAL@", &global_batch.to_string())
        .replace("@PRECISION@", precision)
        .replace("@REPLICATE@", &replicate.to_string())
        .replace("@SHARD@", &shard.to_string())
        .replace("@RESHARD@", reshard)
        .replace("@NO_GRAPHS@", if mesh.pipeline > 1 { "True" } else { "False" })
        .replace("@TENSOR@", &mesh.tensor.to_string())
        .replace("@PIPELINE@", &mesh.pipeline.to_string())
        .replace("@SCHEDULE@", schedule)
        .replace("@MICRO@", &mesh.micro_batch.to_string())
        .replace("@CHECKPOINT@", checkpoint)
}

/// Why 0.2.2 cannot hold the plan though 0.3 can.
fn toml_obstacle(mesh: &Mesh, model: &Model) -> Option<&'static str> {
    let replicated = mesh.data > 1 && !mesh.zero1;
    let usual_width = (8 * u64::from(model.hidden) / 3).next_multiple_of(256);
    if replicated && (mesh.pipeline > 1 || mesh.tensor > 1) {
        return Some(
            "it replicates only without pipeline and tensor parallelism; a plan with zero1 it can hold",
        );
    }
    if model.tied_embeddings {
        return Some("it does not tie embeddings");
    }
    (model.mlp_width() != usual_width).then_some("its MLP is 8/3 of the hidden width, rounded up to 256")
}

fn toml(mesh: &Mesh, model: &Model) -> [File; 2] {
    let Settled { schedule, local_batch, replicate, shard, precision } = settled(mesh, model);
    let mut text = format!(
        "# torchtitan 0.2.2: CONFIG_FILE=narrows_plan.toml, this folder in PYTHONPATH, python -m torchtitan.train\n\n\
         [model]\nname = \"narrows\"\nflavor = \"plan\"\n\n\
         [optimizer]\nname = \"AdamW\"\n\n\
         [training]\nlocal_batch_size = {local_batch}\nglobal_batch_size = {}\nseq_len = {}\nmixed_precision_param = \"{precision}\"\n\n\
         [parallelism]\ndata_parallel_replicate_degree = {replicate}\ndata_parallel_shard_degree = {shard}\n\
         tensor_parallel_degree = {}\npipeline_parallel_degree = {}\n",
        model.global_batch, model.sequence, mesh.tensor, mesh.pipeline
    );
    if mesh.zero1 {
        text += "fsdp_reshard_after_forward = \"never\"\n";
    }
    if mesh.pipeline > 1 {
        let _ = writeln!(
            text,
            "pipeline_parallel_schedule = \"{schedule}\"\npipeline_parallel_microbatch_size = {}\nmodule_fqns_per_model_part = {}",
            mesh.micro_batch,
            parts(mesh, "output")
        );
    }
    let mode = if mesh.recompute == Recompute::Full { "full" } else { "none" };
    let _ = write!(
        text,
        "\n[activation_checkpoint]\nmode = \"{mode}\"\n\n[experimental]\ncustom_import = \"narrows_model\"\n"
    );
    let register = REGISTER
        .replace("@LAYERS@", &model.layers.to_string())
        .replace("@HIDDEN@", &model.hidden.to_string())
        .replace("@HEADS@", &model.heads.to_string())
        .replace("@KV_HEADS@", &model.kv_heads().to_string())
        .replace("@VOCAB@", &model.vocab.to_string());
    [File::new("narrows_plan.toml", text), File::new("narrows_model.py", register)]
}

const PYTHON: &str = r#""""The plan for torchtitan 0.3: python -m torchtitan.train --module narrows_plan --config plan."""

from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import default_adamw
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.models import llama3
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

# The modules of each stage; with several stages a rank, stage s is on pipeline rank s mod the pipeline's degree.
STAGES = @PARTS@


def model() -> ModelSpec:
    dim, vocab_size = @HIDDEN@, @VOCAB@
    config = llama3.Llama3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        enable_weight_tying=@TIED@,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size, embedding_dim=dim, param_init=llama3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=dim, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=dim, out_features=vocab_size, param_init=llama3._output_linear_init(dim)
        ),
        layers=llama3._build_llama3_layers(
            n_layers=@LAYERS@,
            dim=dim,
            n_heads=@HEADS@,
            n_kv_heads=@KV_HEADS@,
            hidden_dim=@MLP@,
            rope=ComplexRoPE.Config(dim=dim // @HEADS@, max_seq_len=@SEQUENCE@, theta=10000),
            attn_backend="flex",
        ),
    )
    return ModelSpec(
        name="llama3",
        flavor="narrows",
        model=config,
        parallelize_fn=llama3.parallelize_llama,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )


def plan() -> Trainer.Config:
    return Trainer.Config(
        model_spec=model(),
        loss=CrossEntropyLoss.Config(global_vocab_size=@VOCAB@),
        optimizer=default_adamw(lr=3e-4),
        training=TrainingConfig(
            local_batch_size=@LOCAL@,
            global_batch_size=@GLOBAL@,
            seq_len=@SEQUENCE@,
            disable_cuda_graphs=@NO_GRAPHS@,
            mixed_precision_param="@PRECISION@",
        ),
        parallelism=ParallelismConfig(
            data_parallel_replicate_degree=@REPLICATE@,
            data_parallel_shard_degree=@SHARD@,
            fsdp_reshard_after_forward="@RESHARD@",
            tensor_parallel_degree=@TENSOR@,
            pipeline_parallel_degree=@PIPELINE@,
            pipeline_parallel_schedule="@SCHEDULE@",
            pipeline_parallel_microbatch_size=@MICRO@,
            module_fqns_per_model_part=STAGES,
        ),
        activation_checkpoint=@CHECKPOINT@,
    )
"#;

const REGISTER: &str = r#""""The plan's model for torchtitan 0.2.2, which imports this by `experimental.custom_import`."""

from dataclasses import replace

from torchtitan.models.llama3 import get_train_spec
from torchtitan.models.llama3.model.args import TransformerModelArgs
from torchtitan.protocols.train_spec import register_train_spec

MODEL = TransformerModelArgs(
    dim=@HIDDEN@,
    n_layers=@LAYERS@,
    n_heads=@HEADS@,
    n_kv_heads=@KV_HEADS@,
    vocab_size=@VOCAB@,
    multiple_of=256,
    rope_theta=10000,
)
register_train_spec("narrows", replace(get_train_spec(), model_args={"plan": MODEL}))
"#;
