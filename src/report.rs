//! `narrows report`: a run folder, predicted beside measured, as text, JSON or a page.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use narrows_runtime::report::files::RunFolder;
use narrows_runtime::report::{self, Report};

/// Show a run, predicted beside measured
///
/// Reads the folder that `narrows train` named at its start, also while the run goes on or after it was cut short. Times
/// are medians over steady steps (the first tenth left out); what was emulated is said, and where this machine could
/// not keep the emulated devices' pace the report says that its timings are not comparable.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run's folder
    dir: PathBuf,
    /// Also write the report as one page that needs nothing but a browser
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
    /// Also write every action of every rank as a trace for Perfetto or chrome://tracing
    #[arg(long, value_name = "OUT")]
    trace: Option<PathBuf>,
    /// Print the figures as JSON, in SI units
    #[arg(long)]
    json: bool,
}

/// Prints the report; exit code 2 where the folder is not a run's or is damaged.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let report = match Report::read(&args.dir) {
        Ok(report) => report,
        Err(error) => {
            crate::terminal::complain(error);
            return Ok(ExitCode::from(2));
        }
    };
    if let Some(out) = &args.html {
        std::fs::write(out, report::render_html(&report))
            .with_context(|| format!("writing the page {}", out.display()))?;
    }
    if let Some(out) = &args.trace {
        let file = File::create(out).with_context(|| format!("writing the trace {}", out.display()))?;
        report::write_chrome(&RunFolder::at(&args.dir), &report.plan, BufWriter::new(file))?;
    }
    let text = if args.json { report::render_json(&report) + "\n" } else { report::render_text(&report) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("printing the report"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
