//! Slurm: one batch job on the plan's hosts, heterogeneous where hosts differ.
//!
//! ```text
//!   #SBATCH --nodelist=ib-0,ib-1 --ntasks-per-node=8        a component of like hosts: cluster, ranks a host
//!   #SBATCH hetjob
//!   #SBATCH --nodelist=roce-0 --ntasks-per-node=8
//!   srun --het-group=0,1 …                                  one step over all
//! ```
//! A task finds its rank in its host's environment file by SLURMD_NODENAME and SLURM_LOCALID, so numbers are the
//! export's and not Slurm's. Hosts are asked for whole: the plan says which GPU. Source: sbatch(1), Slurm 22.05.
//!
//! Not here: partition, account, time limit (options of sbatch, which win over the script's).

use std::fmt::Write as _;

use super::roster::Roster;
use super::shell::quote;
use super::{Export, File, Refusal, Settings, Target};
use crate::plan::Plan;

pub(super) fn export(plan: &Plan, settings: &Settings) -> Result<Export, Refusal> {
    let roster = super::roster(plan, Target::Slurm, settings)?;
    let mut files = vec![File::new("job.sbatch", script(&roster, settings))];
    // Slurm starts the ranks itself.
    files.extend(roster.files(settings).into_iter().filter(|f| f.path != "start.sh"));
    let start = format!("cd DIR && sbatch job.sbatch {}YOUR_PROGRAM", roster.python("$PWD"));
    Ok(Export { target: Target::Slurm, files, start, notes: roster.notes(settings) })
}

fn script(roster: &Roster, settings: &Settings) -> String {
    let components = roster.components();
    let mut text = String::from("#!/usr/bin/env bash\n");
    let _ = writeln!(text, "#SBATCH --job-name={}", quote(&settings.name));
    for (c, hosts) in components.iter().enumerate() {
        if c > 0 {
            text += "#SBATCH hetjob\n";
        }
        let first = &roster.hosts[hosts[0]];
        let names: Vec<&str> = hosts.iter().map(|&h| roster.hosts[h].name.as_str()).collect();
        let _ = write!(
            text,
            "#SBATCH --nodes={}\n#SBATCH --nodelist={}\n#SBATCH --ntasks-per-node={}\n#SBATCH --gpus-per-node={}\n#SBATCH --exclusive\n",
            hosts.len(),
            names.join(","),
            first.seats.len(),
            first.gpus
        );
    }
    let _ = writeln!(
        text,
        "# sbatch job.sbatch {}YOUR_PROGRAM, in the folder of this file (or with NARROWS_EXPORT naming it)",
        roster.python("$PWD")
    );
    let groups: Vec<String> = (0..components.len()).map(|c| c.to_string()).collect();
    let het = if components.len() > 1 { format!(" --het-group={}", groups.join(",")) } else { String::new() };
    text + &STEP.replace("@HET@", &het)
}

const STEP: &str = r#"set -eu
if [ $# -eq 0 ]; then echo "job.sbatch: which program? sbatch job.sbatch COMMAND [ARGUMENT]..." >&2; exit 2; fi
export NARROWS_EXPORT="${NARROWS_EXPORT:-$SLURM_SUBMIT_DIR}"
srun@HET@ --kill-on-bad-exit=1 bash -c '
  export LOCAL_RANK="$SLURM_LOCALID"
  . "$NARROWS_EXPORT/hosts/$SLURMD_NODENAME.env"
  exec "$@"' rank "$@"
"#;
