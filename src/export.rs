//! `narrows export`: a plan in the words of other programs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use narrows_planner::export::{Container, Export, RankOrder, Refusal, Settings, Target, export, write};
use narrows_planner::plan;

use crate::terminal::{BAD_INPUT, note, say};

/// Give a plan to another program: Megatron-LM, torchtitan, DeepSpeed, torchrun, Slurm, Kubernetes
///
/// Writes what that program needs to train by the plan, rank by rank where ranks differ: every process lands on the GPU
/// that the plan names, and NCCL uses the network that the plan uses. What a program cannot say (unlike replicas, cuts,
/// codecs, a sparse exchange) is refused by name; nothing is approximated.
///
///   megatron     arguments of pretrain_gpt.py, uneven stages as a pipeline layout
///   torchtitan   a Python configuration (0.3) and, where it can be said, TOML (0.2.2)
///   deepspeed    ds_config.json, hostfile, arguments of PipelineModule
///   env          torchrun's and NCCL's variables for any program: hosts/*.env and start.sh
///   slurm        a batch job, heterogeneous where the hosts are: job.sbatch and hosts/*.env
///   k8s          a JobSet with one job for each kind of host
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  narrows export plan.json --to megatron -o megatron && cat megatron/run.sh\n  narrows export plan.json --to slurm --ranks mesh -o job    # Megatron's rank order under Slurm\n  narrows export plan.json --to k8s --image IMAGE -- python train.py | kubectl apply -f -\n  narrows export plan.json --to env --hca ib=mlx5_0,mlx5_1 --interface ib=eth0 -o env"
)]
pub struct Args {
    /// The plan, as `narrows plan -o` writes it or as written by hand
    plan: PathBuf,
    /// Whom it is for
    #[arg(long, value_name = "PROGRAM")]
    to: To,
    /// Folder for the files, replaced whole where it holds an earlier export; without it a single file goes to stdout
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Numbers of the ranks in env, slurm and k8s: the plan's own, or those that Megatron-LM, torchtitan and DeepSpeed
    /// expect (tensor fastest, then data, then pipeline)
    #[arg(long, value_name = "ORDER", default_value = "plan")]
    ranks: Ranks,
    /// Port of rank 0
    #[arg(long, default_value_t = 29_500, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// RDMA devices of a cluster's hosts (NCCL_IB_HCA); NCCL takes all that it finds where not given
    #[arg(long, value_name = "CLUSTER=DEVICES", value_parser = of_cluster::<String>)]
    hca: Vec<(String, String)>,
    /// Network interface of a cluster's hosts (NCCL_SOCKET_IFNAME)
    #[arg(long, value_name = "CLUSTER=NAME", value_parser = of_cluster::<String>)]
    interface: Vec<(String, String)>,
    /// GID index of a cluster's RoCE adapters (NCCL_IB_GID_INDEX); NCCL finds it where not given
    #[arg(long, value_name = "CLUSTER=INDEX", value_parser = of_cluster::<u8>)]
    gid_index: Vec<(String, u8)>,
    /// Name of the job (slurm) or JobSet (k8s)
    #[arg(long, default_value = "narrows")]
    name: String,
    /// Image of the containers (k8s)
    #[arg(long, default_value = "")]
    image: String,
    /// Label of the nodes, its value the cluster's name (k8s)
    #[arg(long, value_name = "LABEL", default_value = "narrows/cluster")]
    node_label: String,
    /// Resource asked for on hosts with InfiniBand or RoCE, such as rdma/hca (k8s)
    #[arg(long, value_name = "RESOURCE")]
    rdma_resource: Option<String>,
    /// Print JSON: `target`, `files` (path and text), `start`, `notes`
    #[arg(long)]
    json: bool,
    /// What each rank runs (k8s)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    Megatron,
    Torchtitan,
    Deepspeed,
    Env,
    Slurm,
    K8s,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Ranks {
    Plan,
    Mesh,
}

/// Exports, into a folder or to stdout.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let plan = plan::read(&args.plan)?;
    let (json, output) = (args.json, args.output.clone());
    let exported = match export(&plan, args.to.into(), &args.into()) {
        Ok(exported) => exported,
        Err(refusal) => return Ok(refused(&refusal)),
    };
    if let Some(folder) = &output {
        write(&exported, folder)?;
    }
    match (json, &output, exported.files.as_slice()) {
        (true, _, _) => say(serde_json::to_string_pretty(&exported)?),
        (false, Some(folder), files) => told(&exported, &folder.display().to_string(), files.len()),
        (false, None, [file]) => say(file.text.trim_end()),
        (false, None, files) => return Ok(folder_needed(files.len())),
    }
    for text in exported.notes {
        note(format_args!("note: {text}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn refused(refusal: &Refusal) -> ExitCode {
    note(format_args!("error: {refusal}"));
    ExitCode::from(BAD_INPUT)
}

fn folder_needed(files: usize) -> ExitCode {
    note(format_args!(
        "error: the export has {files} files\n  help: name a folder for them, `-o DIR`, or take them as `--json`"
    ));
    ExitCode::from(BAD_INPUT)
}

fn told(exported: &Export, folder: &str, files: usize) {
    say(exported.start.replace("DIR", folder));
    note(format_args!("wrote {folder}, {files} files, first {}", exported.files[0].path));
}

/// `ib=mlx5_0,mlx5_1`.
fn of_cluster<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let (cluster, value) = text.split_once('=').ok_or("expected CLUSTER=VALUE, such as ib=mlx5_0")?;
    let value = value.parse().map_err(|_| format!("{value:?} is not a value of this setting"))?;
    Ok((cluster.to_owned(), value))
}

impl From<To> for Target {
    fn from(to: To) -> Self {
        match to {
            To::Megatron => Target::Megatron,
            To::Torchtitan => Target::Torchtitan,
            To::Deepspeed => Target::Deepspeed,
            To::Env => Target::Env,
            To::Slurm => Target::Slurm,
            To::K8s => Target::K8s,
        }
    }
}

impl From<Args> for Settings {
    fn from(args: Args) -> Self {
        let order = match args.ranks {
            Ranks::Plan => RankOrder::Plan,
            Ranks::Mesh => RankOrder::Mesh,
        };
        let container = Container {
            image: args.image,
            command: args.command,
            node_label: args.node_label,
            rdma_resource: args.rdma_resource,
        };
        Settings {
            order,
            port: args.port,
            hca: BTreeMap::from_iter(args.hca),
            interface: BTreeMap::from_iter(args.interface),
            gid_index: BTreeMap::from_iter(args.gid_index),
            name: args.name,
            container: Some(container),
        }
    }
}
