//! `narrows launch PLAN -- CMD…`: starts a command once per rank of a plan, as torchrun would.
//!
//! Not here: what is done about exits and signals (`narrows_runtime::launch`), training (`train`).

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use narrows_planner::plan::{self, Plan, Seat};
use narrows_planner::units::{self, Time};
use narrows_runtime::launch::{
    self, Echo, JobEnvironment, JobKey, LaunchConfig, Outcome, RankCommand, environment, free_port,
    rank_label,
};

/// Start a command once per rank of a plan, watch it, end all when one fails
///
/// Every process finds torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...) and NARROWS_PLAN,
/// NARROWS_REPLICA, NARROWS_STAGE in its environment: scripts written for torchrun run unchanged.
///
/// When a rank fails, the others get SIGTERM at once and SIGKILL after the grace, and its name, exit code and last
/// lines are shown. A rank that ends only because a peer did should exit with 75: it is then not taken for the cause.
/// Ctrl-C ends all in the same way; a second one without grace. Nothing outlives this command, however it ends.
///
/// Exit code: the one of the rank that failed first (128 + n for signal n), 130 after Ctrl-C, 2 for a bad plan.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  narrows launch plan.json -- python train.py --epochs 3")]
pub struct Launch {
    /// The plan, made by `narrows plan` or by hand
    plan: PathBuf,
    /// Where rank-N.out.log and rank-N.err.log go [default: narrows-logs/<time>-<pid>]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Time between SIGTERM and SIGKILL: "10s", "500ms", "2min"
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    grace: Duration,
    /// Show only the outcome; the ranks' output goes to the log files alone
    #[arg(long)]
    quiet: bool,
    /// Print the outcome to stdout as JSON
    #[arg(long)]
    json: bool,
    /// The command of every rank, with its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the job and gives the exit code; an error is a plan or log folder that cannot be used.
pub fn run(args: Launch) -> anyhow::Result<ExitCode> {
    let plan = plan::read(&args.plan)?;
    let run_id = run_id();
    let log_dir = args.log_dir.clone().unwrap_or_else(|| Path::new("narrows-logs").join(&run_id));
    let log_dir = std::path::absolute(log_dir).context("cannot tell the current folder")?;
    let ranks = rank_commands(&plan, &args, &log_dir, &run_id)?;
    let echo = if args.quiet { Echo::Quiet } else { Echo::Stderr };
    let config = LaunchConfig { log_dir, grace: args.grace, echo };
    let (_stop, control) = launch::control();
    let outcome = launch::run(ranks, &config, control, |_| {})?;
    show(&outcome, &args);
    Ok(ExitCode::from(outcome.exit_code()))
}

fn rank_commands(
    plan: &Plan,
    args: &Launch,
    log_dir: &Path,
    run_id: &str,
) -> anyhow::Result<Vec<RankCommand>> {
    let plan_path = std::path::absolute(&args.plan).context("cannot tell the current folder")?;
    let job = JobEnvironment {
        plan_path: utf8(&plan_path)?,
        log_dir: utf8(log_dir)?,
        run_id,
        master_addr: "127.0.0.1",
        master_port: free_port().context("cannot find a free port for rank 0")?,
        coordinator: None,
        key: &JobKey::random().context("cannot make a job key")?,
    };
    let environments = environment(plan, &job, |name| env::var_os(name).is_some());
    let (program, arguments) = args.command.split_first().expect("clap requires a command");
    let command = |(seat, env): (Seat<'_>, _)| RankCommand {
        rank: seat.placement.rank,
        label: rank_label(&seat),
        program: program.clone(),
        args: arguments.to_vec(),
        env,
    };
    Ok(plan.seats().into_iter().zip(environments).map(command).collect())
}

fn show(outcome: &Outcome, args: &Launch) {
    // A closed pipe or terminal changes nothing: the exit code still tells.
    if args.json {
        let json = serde_json::to_string(outcome).expect("an outcome is plain data");
        let _ = writeln!(io::stdout(), "{json}");
    } else if let Outcome::Failed(failure) = outcome {
        let _ = writeln!(io::stderr(), "{failure}");
    }
}

/// Sorts by time and tells two launches of one second apart.
fn run_id() -> String {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format!("{now_s}-{}", process::id())
}

fn utf8(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8, which an environment variable needs", path.display()))
}

fn duration(text: &str) -> Result<Duration, String> {
    let time: Time = text.parse().map_err(|error: units::UnitError| error.to_string())?;
    Duration::try_from_secs_f64(time.si()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_is_a_time_with_its_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["10", "10GB", "-1s", "1e300s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
