//! Megatron-LM: arguments of `pretrain_gpt.py`, started on the plan's GPUs in Megatron's rank order.
//!
//! Cuts are `--pipeline-model-parallel-layout`, stage by stage in the order of the layers, which is also the order of
//! interleaved stages (stage j on pipeline rank j mod P):
//!
//! ```text
//!   Et*6|t*8|t*8|t*8L      E embedding, t layer, L loss, | next stage
//! ```
//! Even cuts need no layout. Sources: Megatron-LM `arguments.py` and `pipeline_parallel_layer_layout.py` of August 2026;
//! the layout is known to megatron-core 0.13 and later.
//!
//! Left to the user: tokenizer, data, learning rate, rotary base, checkpoints.

use super::mesh::Mesh;
use super::roster::{Roster, run_script};
use super::{Export, File, Refusal, Settings, Target};
use crate::model::{Biases, Model, ModelKind, Optimizer, Precision, Recompute};
use crate::plan::{Plan, ScheduleKind};

pub(super) fn export(plan: &Plan, settings: &Settings) -> Result<Export, Refusal> {
    let mesh = Mesh::of(plan, Target::Megatron)?;
    check_schedule(&mesh)?;
    let mut arguments = parallelism(&mesh);
    arguments.extend(model(&plan.model)?);
    arguments.extend(training(&mesh, &plan.model));
    let lines: Vec<String> = arguments.iter().map(|a| a.join("\n")).collect();
    let roster = Roster::new(plan, &mesh.ranks());
    let command = match roster.wrapper() {
        Some(_) => r#"python "$here/narrows_nccl.py" "$1" "${arguments[@]}" "${@:2}""#,
        None => r#"python "$1" "${arguments[@]}" "${@:2}""#,
    };
    let about =
        "Megatron-LM by this plan, on every host: bash DIR/run.sh pretrain_gpt.py --data-path DATA ...";
    let mut files = vec![File::new("run.sh", run_script(about, &lines, command))];
    files.extend(roster.files(settings));
    let mut notes = vec![
        "add tokenizer, data, learning rate and --train-iters; everything the plan decides is in run.sh"
            .into(),
    ];
    notes.extend(roster.notes(settings));
    Ok(Export {
        target: Target::Megatron,
        files,
        start: "on every host: bash DIR/run.sh pretrain_gpt.py --data-path DATA ...".into(),
        notes,
    })
}

fn check_schedule(mesh: &Mesh) -> Result<(), Refusal> {
    let Mesh { pipeline, microbatches, virtual_stages, .. } = *mesh;
    if mesh.schedule == ScheduleKind::Gpipe && pipeline > 1 {
        return Err(Target::Megatron
            .refuses("its schedule is gpipe, and Megatron-LM has 1f1b only", "plan with 1f1b"));
    }
    if virtual_stages > 1 && (pipeline == 1 || microbatches % pipeline != 0) {
        return Err(Target::Megatron.refuses(
            format!(
                "{virtual_stages} virtual stages with {microbatches} microbatches on {pipeline} pipeline ranks; interleaving needs a multiple of the pipeline ranks, of which at least 2"
            ),
            format!("choose a global_batch that gives each replica a multiple of {pipeline} microbatches"),
        ));
    }
    Ok(())
}

type Argument = Vec<String>;

fn flag(name: &str) -> Argument {
    vec![name.to_owned()]
}

fn set(name: &str, value: impl ToString) -> Argument {
    vec![name.to_owned(), value.to_string()]
}

fn parallelism(mesh: &Mesh) -> Vec<Argument> {
    let mut arguments = vec![
        set("--tensor-model-parallel-size", mesh.tensor),
        set("--pipeline-model-parallel-size", mesh.pipeline),
    ];
    if !mesh.even() {
        arguments.push(set("--pipeline-model-parallel-layout", layout(&mesh.layers)));
    } else if mesh.virtual_stages > 1 {
        arguments.push(set("--num-virtual-stages-per-pipeline-rank", mesh.virtual_stages));
    }
    if mesh.zero1 {
        arguments.push(flag("--use-distributed-optimizer"));
    }
    arguments
}

/// `Et*6|t*8|t*8L`.
fn layout(layers: &[u32]) -> String {
    let stages: Vec<String> = layers.iter().map(|n| format!("t*{n}")).collect();
    format!("E{}L", stages.join("|"))
}

fn model(model: &Model) -> Result<Vec<Argument>, Refusal> {
    // All fields by name: a new one must be said to Megatron-LM or refused.
    let Model {
        kind,
        layers,
        hidden,
        heads,
        kv_heads: _,
        head_dim: _,
        mlp_width: _,
        tied_embeddings,
        biases: _,
        qk_norm,
        positions,
        vocab,
        sequence,
        global_batch: _,
        micro_batch: _,
        precision: _,
        optimizer: _,
        recompute: _,
        exchange: _,
        boundary: _,
    } = model;
    let mut arguments = vec![
        set("--num-layers", layers),
        set("--hidden-size", hidden),
        set("--ffn-hidden-size", model.mlp_width()),
        set("--num-attention-heads", heads),
        set("--kv-channels", model.head_dim()),
        set("--seq-length", sequence),
        set("--max-position-embeddings", positions.unwrap_or(*sequence)),
        set("--vocab-size", vocab),
    ];
    if model.kv_heads() != *heads {
        arguments.extend([flag("--group-query-attention"), set("--num-query-groups", model.kv_heads())]);
    }
    if !tied_embeddings {
        arguments.push(flag("--untie-embeddings-and-output-weights"));
    }
    if *qk_norm {
        arguments.push(flag("--qk-layernorm"));
    }
    arguments.extend(biases(model)?);
    match kind {
        ModelKind::Gpt => arguments.push(set("--position-embedding-type", "learned_absolute")),
        ModelKind::Llama => arguments.extend([
            set("--position-embedding-type", "rope"),
            set("--normalization", "RMSNorm"),
            flag("--swiglu"),
        ]),
    }
    Ok(arguments)
}

fn biases(model: &Model) -> Result<Vec<Argument>, Refusal> {
    match model.biases() {
        Biases::All => Ok(vec![]),
        Biases::None => Ok(vec![flag("--disable-bias-linear")]),
        Biases::Qkv => Ok(vec![flag("--disable-bias-linear"), flag("--add-qkv-bias")]),
        Biases::Attention => Err(Target::Megatron.refuses(
            "its model has biases in attention and none in the MLP (`biases = \"attention\"`)",
            "Megatron-LM has them in all matrices, in queries, keys and values, or in none",
        )),
    }
}

fn training(mesh: &Mesh, model: &Model) -> Vec<Argument> {
    let mut arguments =
        vec![set("--micro-batch-size", mesh.micro_batch), set("--global-batch-size", model.global_batch)];
    match model.precision {
        Precision::Bf16 => arguments.push(flag("--bf16")),
        Precision::Fp16 => arguments.push(flag("--fp16")),
        Precision::Fp32 => {}
    }
    match model.optimizer {
        // Its Adam decouples weight decay.
        Optimizer::Adamw => arguments.push(set("--optimizer", "adam")),
    }
    match mesh.recompute {
        Recompute::None => {}
        Recompute::Selective => arguments.push(flag("--recompute-activations")),
        Recompute::Full => arguments.extend([
            set("--recompute-granularity", "full"),
            set("--recompute-method", "uniform"),
            set("--recompute-num-layers", 1),
        ]),
        Recompute::Auto => unreachable!("a mesh has its recomputation settled"),
    }
    arguments
}
