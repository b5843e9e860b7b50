//! `narrows train RUN.toml`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use narrows_planner::explain;
use narrows_planner::units::{human_bytes, human_time};
use narrows_runtime::launch::Outcome;
use narrows_runtime::report::files::RunFolder;
use narrows_runtime::report::{self, Report};
use narrows_runtime::settings::Run;
use narrows_runtime::train::{self, Ended, Prepared, Progress, Start, TrainError};

use crate::terminal::{BAD_INPUT, complain, note, say};

/// Plan if needed, launch a worker a rank, train with the native engine, report.
///
/// Everything the run makes lies in its folder ([run] out): plan.json, steps.jsonl, logs, checkpoints, and trace.json,
/// every action of every rank for https://ui.perfetto.dev. Ctrl-C ends all processes; --resume goes on from the newest checkpoint.
#[derive(Debug, clap::Args)]
pub struct Train {
    /// What to train, on which text, for how long (see configs/quickstart/run.toml)
    #[arg(value_name = "RUN.toml")]
    run: PathBuf,
    /// Go on from the newest checkpoint in the run's folder
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Delete an earlier run in the run's folder first
    #[arg(long)]
    fresh: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Trains.
pub fn run(args: Train) -> anyhow::Result<ExitCode> {
    let start = match (args.resume, args.fresh) {
        (true, _) => Start::Resume,
        (_, true) => Start::Fresh,
        _ => Start::New,
    };
    let prepared = match prepare(&args, start) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(refused(&error)),
    };
    let bar = bar(&prepared);
    let watched = bar.clone();
    let ended = train::run(&prepared, move |progress| show(&watched, progress))?;
    bar.finish_and_clear();
    close(&args, &prepared, &ended)
}

fn prepare(args: &Train, start: Start) -> Result<Prepared, TrainError> {
    let run = Run::read(&args.run)?;
    note(format_args!("planning {} …", run.settings.name));
    let prepared = train::prepare(&run, start)?;
    if let Ok(explanation) = explain::explain(&prepared.plan) {
        note(explain::render(&prepared.plan, &explanation).trim_end());
    }
    Ok(prepared)
}

fn refused(error: &TrainError) -> ExitCode {
    complain(error);
    ExitCode::from(if error.is_bad_input() { BAD_INPUT } else { 1 })
}

fn bar(prepared: &Prepared) -> ProgressBar {
    let style = "{bar:30} step {pos}/{len}  {msg}  eta {eta}";
    let bar = ProgressBar::new(prepared.settings.steps);
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// One line while it runs; where stderr is no terminal, a line every 20 steps.
fn show(bar: &ProgressBar, progress: Progress) {
    match progress {
        Progress::Started { resumed } => {
            bar.set_position(resumed);
            bar.reset_eta();
        }
        Progress::Step(record) => {
            let moved: u64 = record.links.iter().map(|l| l.wire_bytes).sum();
            let rate = record.tokens as f64 / record.iteration_s.max(1e-9);
            let mut text =
                format!("loss {:.3}  {rate:.0} tokens/s  {} on links", record.loss, human_bytes(moved));
            let busiest = record.links.iter().max_by_key(|l| l.wire_bytes);
            if let Some(link) = busiest {
                text += &format!(", {} on {}->{}", human_bytes(link.wire_bytes), link.from, link.to);
            }
            if let Some(loss) = record.validation_loss {
                bar.println(format!("step {:>5}  validation loss {loss:.3} nats per token", record.step));
            }
            if bar.is_hidden() && (record.step % 20 == 0 || record.validation_loss.is_some()) {
                let validation =
                    record.validation_loss.map_or(String::new(), |l| format!("  validation {l:.3}"));
                note(format_args!("step {:>5}  {text}{validation}", record.step));
            }
            bar.set_message(text);
            bar.set_position(record.step);
        }
        Progress::Checkpoint { step } => bar.println(format!("step {step:>5}  checkpoint written")),
    }
}

fn close(args: &Train, prepared: &Prepared, ended: &Ended) -> anyhow::Result<ExitCode> {
    match &ended.outcome {
        Outcome::Success => {}
        Outcome::Failed(failure) => {
            note(failure);
            note(what_now(args, ended));
            return Ok(ExitCode::FAILURE);
        }
        Outcome::Interrupted { .. } => {
            note(format_args!("interrupted: all ranks ended. {}", what_now(args, ended)));
            return Ok(ExitCode::from(ended.outcome.exit_code()));
        }
    }
    let report = Report::read(&prepared.folder)?;
    let trace = BufWriter::new(File::create(prepared.folder.join("trace.json"))?);
    report::write_chrome(&RunFolder::at(&prepared.folder), &prepared.plan, trace)?;
    if args.json {
        say(report::render_json(&report));
    } else {
        say(report::render_text(&report));
        let took = report.steps.iter().map(|s| s.iteration_s).sum();
        note(format_args!("trained in {}; everything is in {}", human_time(took), prepared.folder.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn what_now(args: &Train, ended: &Ended) -> String {
    let step = ended.failed_step.map_or(String::new(), |step| format!("it was in step {step}; "));
    match ended.checkpoints.last() {
        Some(last) => format!(
            "{step}`narrows train {} --resume` goes on after step {last}, the newest checkpoint",
            args.run.display()
        ),
        None => format!("{step}there is no checkpoint yet to resume from"),
    }
}
