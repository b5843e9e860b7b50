//! DeepSpeed: `ds_config.json`, a hostfile for its launcher, and how `PipelineModule` is to cut the layers.
//!
//! DeepSpeed cuts by weights that it computes (`partition_method`): even cuts are `type:<class of a layer>`, which
//! gives each stage the same number of layers of that class; any other list of cuts it cannot be told. Its topology
//! (pipe, data, model) has the mesh's rank order. Tensor parallelism beside pipelines is the user's own in DeepSpeed, so
//! only plans without pipelines carry it (AutoTP).
//!
//! Source: DeepSpeed 0.19.8, `runtime/pipe/module.py`, `runtime/config.py`, `launcher/runner.py`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::mesh::Mesh;
use super::roster::{Roster, run_script};
use super::{Export, File, Refusal, Settings, Target};
use crate::model::{Model, Optimizer, Precision, Recompute};
use crate::plan::{Plan, ScheduleKind};

pub(super) fn export(plan: &Plan, settings: &Settings) -> Result<Export, Refusal> {
    let mesh = Mesh::of(plan, Target::Deepspeed)?;
    check(&mesh)?;
    let roster = Roster::new(plan, &mesh.ranks());
    let config = serde_json::to_string_pretty(&config(&mesh, &plan.model)).expect("keys are text") + "\n";
    let wrapper = if roster.wrapper().is_some() { r#""$here/narrows_nccl.py" "# } else { "" };
    let command =
        format!(r#"python {wrapper}"$1" --deepspeed --deepspeed_config "$here/ds_config.json" "${{@:2}}""#);
    let about = "DeepSpeed by this plan, on every host: bash DIR/run.sh train.py ...";
    let mut files =
        vec![File::new("ds_config.json", config), File::new("run.sh", run_script(about, &[], &command))];
    if mesh.pipeline > 1 {
        files.push(File::new("narrows_pipeline.py", pipeline(&mesh)));
    }
    let mut notes = roster.notes(settings);
    match hostfile(&roster) {
        Some(text) => files.push(File::new("hostfile", text)),
        None => {
            notes.push("no hostfile: DeepSpeed's launcher cannot number these ranks; start.sh does".into())
        }
    }
    if mesh.recompute == Recompute::Selective {
        notes.push("recomputing attention scores is the model's: fused attention does it by itself".into());
    }
    files.extend(roster.files(settings));
    Ok(Export {
        target: Target::Deepspeed,
        files,
        start: "on every host: bash DIR/run.sh train.py ...".into(),
        notes,
    })
}

fn check(mesh: &Mesh) -> Result<(), Refusal> {
    let refuse = |what: String, help: &str| Err(Target::Deepspeed.refuses(what, help));
    if !mesh.even() {
        let what =
            format!("explicit cuts: its stages have {:?} layers, and DeepSpeed cuts evenly", mesh.layers);
        return refuse(
            what,
            "export to Megatron-LM or torchtitan, or write even cuts into the plan; `narrows simulate` judges it",
        );
    }
    if mesh.virtual_stages > 1 {
        return refuse(
            format!("{} virtual stages, of which it has 1", mesh.virtual_stages),
            "export to Megatron-LM or torchtitan",
        );
    }
    if mesh.pipeline > 1 && mesh.tensor > 1 {
        let what = format!(
            "tensor-parallel degree {} inside a pipeline, which DeepSpeed leaves to the model",
            mesh.tensor
        );
        return refuse(what, "export to Megatron-LM or torchtitan");
    }
    if mesh.pipeline > 1 && mesh.schedule == ScheduleKind::Gpipe {
        return refuse("its schedule is gpipe, and DeepSpeed has 1f1b only".into(), "plan with 1f1b");
    }
    Ok(())
}

fn config(mesh: &Mesh, model: &Model) -> Value {
    let mut config = json!({
        "train_batch_size": model.global_batch,
        "train_micro_batch_size_per_gpu": mesh.micro_batch,
        "gradient_accumulation_steps": mesh.microbatches,
        "optimizer": { "type": match model.optimizer { Optimizer::Adamw => "AdamW" } },
        "zero_optimization": { "stage": u32::from(mesh.zero1) },
    });
    match model.precision {
        Precision::Bf16 => config["bf16"] = json!({ "enabled": true }),
        Precision::Fp16 => config["fp16"] = json!({ "enabled": true }),
        Precision::Fp32 => {}
    }
    if mesh.tensor > 1 {
        config["tensor_parallel"] = json!({ "autotp_size": mesh.tensor });
    }
    config
}

/// What `PipelineModule` is to be given.
fn pipeline(mesh: &Mesh) -> String {
    let interval = u32::from(mesh.recompute == Recompute::Full);
    format!(
        "\"\"\"How the plan cuts the pipeline: {per_stage} layers a stage.\n\n    \
         PipelineModule(layers, loss_fn=loss, **pipeline(\"TransformerLayer\"))\n\"\"\"\n\n\n\
         def pipeline(layer_class):\n    \
         \"\"\"Arguments of deepspeed.pipe.PipelineModule; `layer_class` names the class of a transformer layer.\"\"\"\n    \
         return {{\n        \"num_stages\": {stages},\n        \"partition_method\": f\"type:^{{layer_class}}$\",\n        \
         \"activation_checkpoint_interval\": {interval},\n    }}\n",
        per_stage = mesh.layers[0],
        stages = mesh.pipeline,
    )
}

/// Slots in the order in which the launcher counts ranks; it takes a host's GPUs from 0 up, or those of `--include`.
fn hostfile(roster: &Roster) -> Option<String> {
    if roster.scattered().is_some() {
        return None;
    }
    let mut text = String::from("# deepspeed --hostfile hostfile");
    let counted = |h: &super::roster::HostSeats| h.seats.iter().map(|s| s.gpu).eq(0..h.gpus);
    if !roster.hosts.iter().all(counted) {
        let include = |h: &super::roster::HostSeats| {
            let gpus: Vec<String> = h.seats.iter().map(|s| s.gpu.to_string()).collect();
            format!("{}:{}", h.address, gpus.join(","))
        };
        // The launcher sorts a host's slots: other orders are start.sh's.
        if roster.hosts.iter().any(|h| !h.seats.is_sorted_by_key(|s| s.gpu)) {
            return None;
        }
        let included: Vec<String> = roster.hosts.iter().map(include).collect();
        let _ = write!(text, " --include \"{}\"", included.join("@"));
    }
    text += " train.py ...\n";
    for host in &roster.hosts {
        let _ = writeln!(text, "{} slots={}", host.address, host.gpus);
    }
    Some(text)
}
