//! `narrows launch` with real processes: what they are given, how their ends are told, that nothing is left.
//!
//! The plan has three ranks: 0 and 1 on host fast-0 (replica 0, two stages), 2 on host slow-0 (replica 1).
//! Commands are shell scripts; files in the test's folder, `$D`, tell how far they are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PLAN: &str = include_str!("launch/plan.json");

/// For anything to happen; far more than a busy machine needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A launcher at work, killed if the test gives up on it.
struct Run {
    dir: TempDir,
    launcher: Child,
}

/// `narrows launch plan.json ARGS -- sh -c SCRIPT`
fn launch(args: &[&str], script: &str) -> Run {
    launch_under(&[], args, &["sh", "-c", script])
}

/// The same with any command, the launcher itself started by `wrapper`.
fn launch_under(wrapper: &[&str], args: &[&str], command: &[&str]) -> Run {
    let dir = TempDir::new().expect("a temporary folder");
    fs::write(dir.path().join("plan.json"), PLAN).expect("it is writable");
    // Whatever runs the tests may ignore signals (`nohup`, a script's background job); a launcher would inherit that.
    let usual_signals = ["env", "--default-signal=INT,HUP,TERM"];
    let words = [
        &usual_signals,
        wrapper,
        &[env!("CARGO_BIN_EXE_narrows"), "launch", "plan.json", "--log-dir", "logs"],
        args,
        &["--"],
    ];
    let words: Vec<_> = words.concat().into_iter().chain(command.iter().copied()).collect();
    let launcher = Command::new(words[0])
        .args(&words[1..])
        .current_dir(dir.path())
        .env("D", dir.path())
        .env_remove("OMP_NUM_THREADS")
        .stdout(File::create(dir.path().join("stdout")).expect("it is writable"))
        .stderr(File::create(dir.path().join("stderr")).expect("it is writable"))
        .spawn()
        .expect("narrows starts");
    Run { dir, launcher }
}

impl Run {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    fn stderr(&self) -> String {
        self.read("stderr")
    }

    fn end(&mut self) -> ExitStatus {
        let launcher = &mut self.launcher;
        poll("the launcher's end", || launcher.try_wait().expect("it is our child"))
    }

    fn code(&mut self) -> Option<i32> {
        self.end().code()
    }

    fn wait_for(&self, name: &str) {
        poll(name, || self.path(name).exists().then_some(()));
    }

    fn signal(&self, signal: &str) {
        let sent =
            Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.launcher.id())]).status();
        assert!(sent.expect("sh runs").success());
    }

    /// Process ids that the ranks wrote to their stdout, `n` in all, one a line.
    fn pids(&self, n: usize) -> Vec<u32> {
        poll("process ids", || {
            let logs = (0..3).map(|rank| self.read(&format!("logs/rank-{rank}.out.log"))).collect::<String>();
            let pids: Vec<u32> =
                logs.lines().filter_map(|line| line.strip_prefix("pid ")?.parse().ok()).collect();
            (pids.len() == n).then_some(pids)
        })
    }

    /// The box, from its first line on.
    fn failure(&self) -> String {
        let stderr = self.stderr();
        let start = stderr.find("┌ FAILED").unwrap_or_else(|| panic!("no box in:\n{stderr}"));
        stderr[start..].to_owned()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited for {what} in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether it runs; a zombie does not.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

fn assert_all_gone(pids: &[u32]) {
    let alive: Vec<_> = pids.iter().filter(|pid| is_alive(**pid)).collect();
    assert!(alive.is_empty(), "{alive:?} of {pids:?} still run");
}

#[test]
fn every_rank_finds_torchruns_environment_and_its_place_in_the_plan() {
    let mut run = launch(&["--quiet"], "env");
    assert_eq!(run.code(), Some(0), "{}", run.stderr());
    let names = "RANK LOCAL_RANK GROUP_RANK ROLE_RANK ROLE_NAME WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE \
                 ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS \
                 TORCHELASTIC_RUN_ID TORCHELASTIC_ERROR_FILE TORCHELASTIC_SIGNALS_TO_HANDLE \
                 TORCH_NCCL_ASYNC_ERROR_HANDLING OMP_NUM_THREADS NARROWS_PLAN NARROWS_STAGE NARROWS_REPLICA \
                 NARROWS_JOB_KEY";
    let value = |rank: u32, name: &str| {
        let env = run.read(&format!("logs/rank-{rank}.out.log"));
        let found = env.lines().find_map(|line| line.strip_prefix(&format!("{name}=")).map(str::to_owned));
        found.unwrap_or_else(|| panic!("rank {rank} has no {name} in:\n{env}"))
    };
    for rank in 0..3 {
        names.split_whitespace().for_each(|name| assert!(!value(rank, name).is_empty(), "{name}"));
        assert!(!run.read(&format!("logs/rank-{rank}.out.log")).contains("USE_AGENT_STORE"));
        assert_eq!(value(rank, "RANK"), rank.to_string());
        assert_eq!(value(rank, "MASTER_PORT"), value(0, "MASTER_PORT"));
        assert_eq!(value(rank, "NARROWS_JOB_KEY"), value(0, "NARROWS_JOB_KEY"));
        assert_eq!(value(rank, "NARROWS_PLAN"), run.path("plan.json").to_str().expect("UTF-8"));
    }
    assert_eq!([0, 1, 2].map(|rank| value(rank, "LOCAL_RANK")), ["0", "1", "0"]);
    assert_eq!([0, 1, 2].map(|rank| value(rank, "NARROWS_REPLICA")), ["0", "0", "1"]);
    assert_eq!([0, 1, 2].map(|rank| value(rank, "NARROWS_STAGE")), ["0", "1", "0"]);
    assert_eq!(run.stderr(), "");
}

#[test]
fn the_rank_that_fails_first_is_named_and_the_others_are_stopped() {
    let script = "echo pid $$; [ $RANK = 2 ] || exec sleep 600
        until [ -e $D/fail ]; do sleep 0.01; done
        echo progress; echo boom >&2; exit 17";
    let mut run = launch(&[], script);
    let pids = run.pids(3);
    File::create(run.path("fail")).expect("it is writable");
    assert_eq!(run.code(), Some(17));
    let failure = run.failure();
    for part in [
        "FAILED  rank 2 (replica 1 stage 0, host slow-0, ethernet)\n",
        "exit code 17\n",
        "boom\n",
        "2 ranks stopped",
        "logs/rank-2.{out,err}.log",
    ] {
        assert!(failure.contains(part), "no {part:?} in:\n{failure}");
    }
    assert!(failure.lines().count() <= 15, "{failure}");
    assert!(run.stderr().contains("[rank 2] boom\n"), "{}", run.stderr());
    assert_all_gone(&pids);
}

#[test]
fn a_rank_that_is_killed_is_told_by_the_signals_name() {
    let mut run = launch(&[], "[ $RANK = 1 ] && kill -9 $$; exec sleep 600");
    assert_eq!(run.code(), Some(137));
    let failure = run.failure();
    assert!(failure.contains("FAILED  rank 1 "), "{failure}");
    assert!(failure.contains("killed by SIGKILL"), "{failure}");
    assert!(!failure.contains("memory"), "{failure}");
}

#[test]
fn a_rank_that_ignores_sigterm_is_killed_after_the_grace() {
    let script = "trap 'touch $D/asked' TERM; echo pid $$
        [ $RANK = 0 ] && exit_code=3 || exit_code=
        until [ -n \"$exit_code\" -a -e $D/fail ]; do sleep 0.01; done; exit $exit_code";
    let mut run = launch(&["--grace", "1s"], script);
    let pids = run.pids(3);
    File::create(run.path("fail")).expect("it is writable");
    assert_eq!(run.code(), Some(3));
    assert!(run.path("asked").exists(), "SIGKILL came without SIGTERM before it");
    assert_all_gone(&pids);
}

#[test]
fn nothing_outlives_a_launcher_that_is_killed() {
    let mut run = launch(&[], "trap '' TERM HUP; sleep 600 & echo pid $$; echo pid $!; wait");
    let pids = run.pids(6);
    run.signal("KILL");
    run.end();
    for pid in pids {
        poll(&format!("the end of process {pid}"), || (!is_alive(pid)).then_some(()));
    }
}

#[test]
fn ctrl_c_asks_every_rank_to_end_and_gives_130() {
    let mut run = launch(&[], "trap 'echo saved; exit 0' TERM; echo pid $$; while :; do sleep 0.01; done");
    let pids = run.pids(3);
    run.signal("INT");
    assert_eq!(run.code(), Some(130));
    for rank in 0..3 {
        assert!(
            run.read(&format!("logs/rank-{rank}.out.log")).contains("saved"),
            "rank {rank} was not asked"
        );
    }
    assert!(!run.stderr().contains("FAILED"), "{}", run.stderr());
    assert_all_gone(&pids);
}

#[test]
fn a_second_ctrl_c_does_not_wait_for_the_grace() {
    let script = "trap 'touch $D/asked-$RANK' TERM; echo pid $$; while :; do sleep 0.01; done";
    let mut run = launch(&["--grace", "60min"], script);
    let pids = run.pids(3);
    run.signal("INT");
    (0..3).for_each(|rank| run.wait_for(&format!("asked-{rank}")));
    run.signal("INT");
    assert_eq!(run.code(), Some(130));
    assert_all_gone(&pids);
}

#[test]
fn a_launcher_under_nohup_lives_on_when_the_terminal_closes() {
    let script = "echo pid $$; until [ -e $D/go ]; do sleep 0.01; done";
    let wrapper = ["sh", "-c", "trap '' HUP; exec \"$@\"", "wrapper"];
    let mut run = launch_under(&wrapper, &[], &["sh", "-c", script]);
    run.pids(3);
    run.signal("HUP");
    File::create(run.path("go")).expect("it is writable");
    assert_eq!(run.code(), Some(0), "{}", run.stderr());
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let mut run = launch_under(&[], &[], &["no-such-program", "x"]);
    assert_eq!(run.code(), Some(127));
    assert!(run.failure().contains("cannot start no-such-program: No such file"), "{}", run.stderr());
}

#[test]
fn a_plan_that_is_none_is_bad_input() {
    let mut run =
        launch_under(&["sh", "-c", "echo '{}' > plan.json; exec \"$@\"", "wrapper"], &[], &["true"]);
    assert_eq!(run.code(), Some(2));
    assert!(run.stderr().contains("plan.json"), "{}", run.stderr());
    assert!(!run.path("logs").exists(), "nothing was started");
}

#[test]
fn what_record_wrote_is_shown_and_what_an_earlier_job_wrote_is_not() {
    let script = r#"[ $RANK = 0 ] || exec sleep 600
        [ -e $TORCHELASTIC_ERROR_FILE ] && exit 9
        [ -e $D/told ] && exit 8
        echo '{"message": {"message": "RuntimeError: boom"}}' > $TORCHELASTIC_ERROR_FILE
        exit 1"#;
    let mut run = launch(&[], script);
    assert_eq!(run.code(), Some(1));
    assert!(run.failure().contains("RuntimeError: boom"), "{}", run.stderr());

    File::create(run.path("told")).expect("it is writable");
    let again = "cd \"$1\" && exec \"$2\" launch plan.json --log-dir logs -- sh -c \"$3\"";
    let words = [
        "-c",
        again,
        "again",
        run.dir.path().to_str().expect("UTF-8"),
        env!("CARGO_BIN_EXE_narrows"),
        script,
    ];
    let second = Command::new("sh").args(words).env("D", run.dir.path()).output().expect("sh runs");
    assert_eq!(second.status.code(), Some(8));
    assert!(!String::from_utf8_lossy(&second.stderr).contains("RuntimeError"));
}

#[test]
fn logs_hold_every_byte_and_the_merged_view_whole_lines() {
    let mut run = launch(&[], r"printf 'a\377\000b\r\nno end'; printf 'err\n' >&2");
    assert_eq!(run.code(), Some(0));
    for rank in 0..3 {
        let log = fs::read(run.path(&format!("logs/rank-{rank}.out.log"))).expect("it was written");
        assert_eq!(log, b"a\xff\0b\r\nno end");
        let shown = fs::read(run.path("stderr")).expect("it was written");
        let has = |line: &[u8]| {
            let line = [format!("[rank {rank}] ").as_bytes(), line].concat();
            shown.split(|b| *b == b'\n').any(|l| l == line)
        };
        assert!(has(b"a\xff\0b") && has(b"no end") && has(b"err"), "{}", run.stderr());
    }
}

#[test]
fn what_a_successful_rank_leaves_behind_is_ended() {
    let mut run = launch(&[], "sleep 600 & echo pid $!");
    let pids = run.pids(3);
    assert_eq!(run.code(), Some(0), "{}", run.stderr());
    assert_all_gone(&pids);
}

#[test]
fn json_gives_the_outcome_on_stdout() {
    let mut run = launch(&["--json", "--quiet"], "[ $RANK = 2 ] && exit 5; exec sleep 600");
    assert_eq!(run.code(), Some(5));
    let outcome: serde_json::Value = serde_json::from_str(&run.read("stdout")).expect("JSON");
    assert_eq!(outcome["outcome"], "failed");
    assert_eq!(outcome["rank"], 2);
    assert_eq!(outcome["cause"]["code"], 5);
    assert_eq!(outcome["victims"], 2);
    assert_eq!(run.stderr(), "");
}
