//! `narrows report` on a made-up run folder and on damaged ones.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use narrows_runtime::report::files::{RunFolder, StepRecord};
use narrows_runtime::report::lines::{Appender, read_lines};
use serde_json::Value;

#[path = "../runtime/examples/report_fixture.rs"]
mod fixture;

fn run_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(dir.path()).unwrap();
    dir
}

fn report(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_narrows")).arg("report").arg(dir).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(dir: &Path) -> Value {
    let output = report(dir, &["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn edit_steps(dir: &Path, edit: impl Fn(&mut StepRecord)) {
    let path = RunFolder::at(dir).steps();
    let mut steps = Vec::new();
    read_lines(&path, |_, mut step| {
        edit(&mut step);
        steps.push(step);
        Ok(())
    })
    .unwrap();
    fs::remove_file(&path).unwrap();
    Appender::open(&path).unwrap().append_all(&steps).unwrap();
}

fn assert_close(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"));
    assert!((value - expected).abs() <= 1e-6 * expected.abs(), "{value} is not {expected}");
}

#[test]
fn figures_are_those_of_the_folder() {
    let dir = run_folder();
    let report = json(dir.path());
    let figures = &report["comparison"];
    assert_eq!(report["comparable"], true);
    assert_eq!((&figures["steady_plain_steps"], &figures["steady_exchange_steps"]), (&48.into(), &6.into()));
    let [plain, exchange] = ["plain_step_s", "exchange_step_s"].map(|kind| &figures[kind]["measured"]);
    let amortised = (9.0 * plain.as_f64().unwrap() + exchange.as_f64().unwrap()) / 10.0;
    assert_close(&figures["iteration_s"]["measured"], amortised);
    assert_close(&figures["iteration_s"]["error_percent"], 4.0);
    assert_close(&figures["tokens_per_s"]["measured"], 2560.0 / amortised);
    // Rank 2: 4 microbatches of three passes of 16 ms and a 4 ms step, 4 % slower than foreseen.
    assert_close(&figures["stages"][2]["busy_s"]["predicted"], 0.196);
    assert_close(&figures["stages"][2]["busy_s"]["measured"], 0.196 * fixture::SLOWER);
    assert_close(&figures["stages"][2]["memory_bytes"]["measured"], 51e6);
}

#[test]
fn a_link_has_the_codecs_account_the_sockets_count_and_the_dense_size() {
    let dir = run_folder();
    let report = json(dir.path());
    let links = report["comparison"]["links"].as_array().unwrap();
    assert_eq!(links.len(), 14);
    let link = |from: u64, to: u64| links.iter().find(|l| l["from"] == from && l["to"] == to).unwrap();
    // An exchange every 10 steps: 40 kB of frames, 288 bytes of headers, 1.6 MB as f32.
    assert_eq!(link(0, 2)["carries"], "exchange");
    assert_close(&link(0, 2)["codec_bytes"], 4_000.0);
    assert_close(&link(0, 2)["wire_bytes"]["measured"], 4_028.8);
    assert_close(&link(0, 2)["wire_bytes"]["predicted"], 4_000.0);
    assert_close(&link(0, 2)["dense_bytes"], 160_000.0);
    // A boundary every step: 4 microbatches x 2 sequences x 128 tokens x 128 wide, 16 directions in bf16.
    assert_eq!(link(3, 2)["carries"]["boundary"]["rank"], 16);
    assert_close(&link(3, 2)["codec_bytes"], 65_536.0);
    assert_close(&link(3, 2)["dense_bytes"], 4.0 * 4.0 * 2.0 * 128.0 * 128.0);
}

#[test]
fn the_text_fits_a_terminal_and_says_what_is_emulated() {
    let dir = run_folder();
    let output = report(dir.path(), &[]);
    let text = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(text.lines().count() <= 60, "{} lines", text.lines().count());
    assert!(text.lines().all(|l| l.chars().count() <= 120), "a line is too long:\n{text}");
    assert_eq!(text.matches("EMULATED  ").count(), 2, "{text}");
    assert!(text.contains("emulated device rates held") && !text.contains("NOT comparable"), "{text}");
}

#[test]
fn timings_of_devices_that_lost_their_pace_are_not_called_comparable() {
    let dir = run_folder();
    edit_steps(dir.path(), |step| step.overrun_s[3] = 0.1 * step.iteration_s);
    let text = text(&report(dir.path(), &[]).stdout);
    assert!(text.contains("NOT comparable") && text.contains("rank 3 lost most"), "{text}");
    assert_eq!(json(dir.path())["comparable"], false);
}

#[test]
fn the_last_try_of_a_step_counts_and_a_torn_line_does_not() {
    let dir = run_folder();
    let path = RunFolder::at(dir.path()).steps();
    let mut lines = fs::read_to_string(&path).unwrap();
    let last = lines.lines().last().unwrap().replace("\"tokens\":2560", "\"tokens\":1");
    lines += &format!("{last}\n{}", &last[..last.len() / 2]);
    fs::write(&path, lines).unwrap();
    let report = json(dir.path());
    assert_eq!((&report["steps_done"], &report["last_step"]["tokens"]), (&60.into(), &1.into()));
}

#[test]
fn a_run_that_has_only_begun_is_reported() {
    let dir = run_folder();
    let folder = RunFolder::at(dir.path());
    for path in [folder.steps(), folder.events()] {
        fs::remove_file(path).unwrap();
    }
    fs::remove_dir_all(dir.path().join("trace")).unwrap();
    let page = dir.path().join("page.html");
    let output = report(dir.path(), &["--html", page.to_str().unwrap()]);
    assert!(text(&output.stdout).contains("No step of 60 is finished yet"), "{}", text(&output.stdout));
    assert!(fs::read_to_string(page).unwrap().contains("No step is finished yet."));
}

#[test]
fn a_loss_that_is_not_a_number_is_reported() {
    let dir = run_folder();
    edit_steps(dir.path(), |step| step.loss = if step.step > 50 { f64::NAN } else { step.loss });
    let output = report(dir.path(), &["--html", dir.path().join("page.html").to_str().unwrap()]);
    assert!(
        output.status.success() && text(&output.stdout).contains("loss to NaN"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn the_page_needs_nothing_and_trusts_no_text() {
    let dir = run_folder();
    let path = dir.path().join("page.html");
    assert!(report(dir.path(), &["--html", path.to_str().unwrap()]).status.success());
    let page = fs::read_to_string(path).unwrap();
    assert!(page.contains("quickstart &lt;fixture&gt;") && !page.contains("<fixture>"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;gone&quot;"));
    let outside = ["src=", "@import", "url(", "<link rel=\"stylesheet\""];
    assert!(outside.iter().all(|o| !page.contains(o)), "the page loads something");
}

#[test]
fn what_is_no_run_folder_is_refused_with_exit_code_2() {
    let empty = tempfile::tempdir().unwrap();
    for dir in [empty.path(), Path::new("/nonexistent/run")] {
        let output = report(dir, &[]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.contains(&dir.display().to_string()) && error.contains("run.json is missing"),
            "{error}"
        );
    }
}

#[test]
fn a_damaged_file_is_named_with_its_line() {
    let damage: [(&str, &str, &str, &str); 5] = [
        ("steps.jsonl", "\"tokens\":2560", "\"tokens\":-1", "steps.jsonl:1: "),
        (
            "steps.jsonl",
            "\"from\":3",
            "\"from\":5",
            "steps.jsonl:1: rank 5 is not of this run, whose plan has 5 ranks",
        ),
        ("trace/rank-1.jsonl", "\"do\":\"forward\"", "\"do\":\"dance\"", "trace/rank-1.jsonl:2: "),
        (
            "run.json",
            "\"version\": 1",
            "\"version\": 9",
            "run.json: format version 9; this narrows reads version 1",
        ),
        ("plan.json", "\"host\": \"slow-2\"", "\"host\": \"gone\"", "plan.json:"),
    ];
    for (file, from, to, expected) in damage {
        let dir = run_folder();
        let path = dir.path().join(file);
        let whole = fs::read_to_string(&path).unwrap();
        assert!(whole.contains(from), "{file} has no {from}");
        fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        let output = report(dir.path(), &[]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{file}: {error}");
        assert!(error.contains(expected), "{file}: {error}");
    }
}
