//! `narrows train`, whole: real processes, real sockets, a small model, hand-written plans, nothing emulated.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn pipelines_of_two_and_three_stages_give_the_gradients_of_one_process() {
    let whole = Job::new("whole").replicas(&[&[0, 3]], 4).steps(1).finished();
    for cuts in [&[0, 1, 3][..], &[0, 1, 2, 3][..]] {
        let cut = Job::new(&format!("cut-{}", cuts.len())).replicas(&[cuts], 4).steps(1).finished();
        // After one step AdamW's first moment is the gradient times a constant.
        let (expected, got) = (whole.flat("adamw.m", 1), cut.flat("adamw.m", 1));
        assert_eq!(expected.len(), got.len());
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let error =
            norm(&mut expected.iter().zip(&got).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
        assert!(error < 1e-5, "{cuts:?}: relative error {error}");
        assert!(norm(&mut expected.iter().copied()) > 1e-6, "there are gradients");
    }
}

#[test]
fn a_run_stopped_and_resumed_gives_the_bits_of_one_that_was_not() {
    let shape: [&[u32]; 2] = [&[0, 3], &[0, 2, 3]];
    let through = Job::new("through").replicas(&shape, 2).sparse(2).boundary(json!({"kind": "int8"}));
    let through = through.steps(9).finished();
    let halves = Job::new("halves").replicas(&shape, 2).sparse(2).boundary(json!({"kind": "int8"})).steps(9);
    let mut child = halves.start(&["--fresh"]);
    wait_for("a checkpoint at step 3", || halves.checkpoint(3).exists());
    signal(child.id(), "KILL");
    child.wait().unwrap();
    // Whatever it reached, go on from the checkpoint at step 3: not a multiple of the exchange's period.
    for later in [6, 9] {
        let _ = fs::remove_dir_all(halves.checkpoint(later));
    }
    let output = halves.run(&["--resume"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(shards(&through.checkpoint(9)), shards(&halves.checkpoint(9)));
    assert_ne!(shards(&through.checkpoint(6)), shards(&through.checkpoint(9)), "training changes something");
}

#[test]
fn replicas_hold_the_same_bits_after_every_exchange_and_the_books_say_so() {
    for exchange in [json!({"kind": "sparse", "top_k": 64, "every": 2}), json!({"kind": "dense", "every": 1})]
    {
        let job = Job::new(&format!("equal-{}", exchange["kind"].as_str().unwrap()));
        let every = exchange["every"].as_u64().unwrap();
        let job = job.replicas(&[&[0, 3], &[0, 1, 3], &[0, 2, 3]], 2).exchange(exchange).steps(6).finished();
        let verified: Vec<u64> = job
            .lines("events.jsonl")
            .iter()
            .filter(|e| e["kind"] == "exchange_verified")
            .map(|e| e["step"].as_u64().unwrap())
            .collect();
        assert_eq!(verified, (1..=6).filter(|s| s % every == 0).collect::<Vec<_>>());
        let trace: Value = serde_json::from_slice(&fs::read(job.out().join("trace.json")).unwrap()).unwrap();
        let forwards = trace["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["name"].as_str().is_some_and(|n| n.contains("forward")));
        assert_eq!(forwards.count(), 5 * 2 * 6, "ranks x microbatches x steps");
        // The whole replica (rank 0) and the cut one (ranks 1 and 2) end with the same parameters.
        let last = job.flat_of(0, "layer.0", 6);
        assert!(!last.is_empty() && last == job.flat_of(1, "layer.0", 6));
        assert_eq!(job.flat_of(0, "layer.2", 6), job.flat_of(2, "layer.2", 6));
    }
}

#[test]
fn bytes_at_the_socket_are_the_codecs_own_and_framing() {
    let job = Job::new("bytes").replicas(&[&[0, 3], &[0, 2, 3]], 2).sparse(2);
    let job = job.model("hidden", json!(64)).model("sequence", json!(64));
    let job = job.boundary(json!({"kind": "subspace", "rank": 32})).steps(4).finished();
    let steps = job.lines("steps.jsonl");
    let (mut codec, mut wire) = (0, 0);
    for link in steps.iter().flat_map(|s| s["links"].as_array().unwrap()) {
        codec += link["codec_bytes"].as_u64().unwrap();
        wire += link["wire_bytes"].as_u64().unwrap();
    }
    assert!(codec > 0 && wire >= codec, "codec {codec} B, socket {wire} B");
    // A header a chunk on messages of 8 KiB here, and the credits that flow back.
    assert!(wire as f64 <= codec as f64 * 1.05, "codec {codec} B, socket {wire} B");
}

#[test]
fn any_rank_killed_at_any_moment_ends_all_names_rank_and_step_and_can_be_resumed() {
    let job = Job::new("killed").replicas(&[&[0, 3], &[0, 1, 3]], 2).sparse(2).steps(100_000);
    for (round, victim) in [0u32, 1, 2, 1].into_iter().enumerate() {
        let before = job.newest_checkpoint();
        let mut child = job.start(if round == 0 { &["--fresh"] } else { &["--resume"] });
        wait_for("a new checkpoint", || job.newest_checkpoint() > before);
        let ranks = children(child.id());
        assert_eq!(ranks.len(), 3, "one process a rank");
        let pid = ranks.iter().copied().find(|&pid| rank_of(pid) == Some(victim)).expect("the victim runs");
        signal(pid, "KILL");
        let killed = Instant::now();
        let output = wait_with_deadline(&mut child, Duration::from_secs(10));
        assert!(killed.elapsed() < Duration::from_secs(10));
        assert!(ranks.iter().all(|&pid| !alive(pid)), "no rank outlives the run");
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let said = text(&output);
        assert!(said.contains(&format!("rank {victim} ")) && said.contains("KILL"), "{said}");
        assert!(said.contains("it was in step ") && said.contains("--resume"), "{said}");
        assert!(no_half_written(&job.out()), "{said}");
    }
}

#[test]
fn ctrl_c_in_training_ends_all_and_leaves_nothing_half_written() {
    let job = Job::new("interrupted").replicas(&[&[0, 3], &[0, 1, 3]], 2).sparse(2).steps(100_000);
    let mut child = job.start(&["--fresh"]);
    wait_for("a checkpoint", || job.newest_checkpoint().is_some());
    let ranks = children(child.id());
    signal(child.id(), "INT");
    let output = wait_with_deadline(&mut child, LONG);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("--resume"));
    assert!(ranks.iter().all(|&pid| !alive(pid)));
    assert!(no_half_written(&job.out()));
}

#[test]
fn ctrl_c_at_any_time_from_the_start_leaves_no_process_and_no_half_written_file() {
    for delay_ms in [1, 10, 40, 80, 160, 320] {
        let job = Job::new(&format!("early-{delay_ms}"))
            .replicas(&[&[0, 3], &[0, 1, 3]], 2)
            .sparse(2)
            .steps(100_000);
        let mut child = job.start(&["--fresh"]);
        let pid = child.id();
        std::thread::sleep(Duration::from_millis(delay_ms)); // the moment is what is tested
        let ranks = children(pid);
        signal(pid, "INT");
        let output = wait_with_deadline(&mut child, LONG);
        let interrupted = output.status.code() == Some(130) || output.status.code().is_none();
        assert!(interrupted, "{delay_ms} ms: {:?} {}", output.status, text(&output));
        assert!(ranks.iter().all(|&pid| !alive(pid)), "{delay_ms} ms");
        assert!(no_half_written(&job.out()), "{delay_ms} ms");
    }
}

#[test]
fn a_checkpoint_with_a_flipped_bit_is_refused_by_name_and_the_one_before_it_serves() {
    let job = Job::new("flipped").replicas(&[&[0, 1, 3]], 2).steps(6).finished();
    let path = job.checkpoint(6).join("rank-1.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).unwrap();
    let refused = job.run(&["--resume"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let said = text(&refused);
    assert!(said.contains("step-00000006/rank-1.safetensors") && said.contains("checksum"), "{said}");
    fs::remove_dir_all(job.checkpoint(6)).unwrap();
    let served = job.run(&["--resume"]);
    assert!(served.status.success(), "{}", text(&served));
    assert!(job.checkpoint(6).exists());
}

#[test]
fn a_folder_that_holds_a_run_or_anything_else_is_not_overwritten() {
    let job = Job::new("used").replicas(&[&[0, 3]], 2).steps(3).finished();
    let again = job.run(&[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again).contains("--resume") && text(&again).contains("--fresh"), "{}", text(&again));
    let other = Job::new("foreign").replicas(&[&[0, 3]], 2).steps(3);
    fs::create_dir_all(other.out()).unwrap();
    fs::write(other.out().join("precious"), "x").unwrap();
    let refused = other.run(&["--fresh"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(other.out().join("precious").exists());
}

#[test]
fn what_cannot_run_is_refused_with_one_error_before_anything_starts() {
    type Break = fn(Job) -> Job;
    let cases: [(&str, Break, &[&str]); 7] = [
        ("empty text", |j| j.text(""), &["train.txt", "0 bytes", "need"]),
        ("missing text", |j| j.without_text(), &["train.txt", "cannot be read"]),
        ("llama", |j| j.model("kind", json!("llama")), &["engine", "gpt"]),
        ("bf16", |j| j.model("precision", json!("bf16")), &["fp32"]),
        ("vocabulary", |j| j.model("vocab", json!(300)), &["vocab", "256"]),
        ("overlap", |j| j.replicas(&[&[0, 2, 1, 3]], 2), &["plan.json", "layers"]),
        ("unknown key", |j| j.setting("[optimizer]\nlerning_rate = 1.0\n"), &["run.toml", "learning_rate"]),
    ];
    for (name, broken, expected) in cases {
        let job =
            broken(Job::new(&format!("refused-{}", name.replace(' ', "-"))).replicas(&[&[0, 3]], 2).steps(2));
        let output = job.run(&["--fresh"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{name}: {said}");
        assert!(expected.iter().all(|e| said.contains(e)), "{name}: {said}");
        assert!(!said.contains("panicked"), "{name}: {said}");
        assert!(!job.out().join("run.json").exists(), "{name}: nothing was begun");
    }
}

#[test]
fn diverging_training_ends_with_the_step_and_a_hint() {
    let job = Job::new("diverged")
        .replicas(&[&[0, 1, 3]], 2)
        .steps(200)
        .setting("[optimizer]\nlearning_rate = 1e30\n");
    let output = job.run(&["--fresh"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("step ") && said.contains("learning"), "{said}");
}

/// A run in a temporary folder: a model of three layers, a plan by hand.
struct Job {
    folder: tempfile::TempDir,
    model: Value,
    replicas: Vec<Vec<u32>>,
    microbatches: u32,
    exchange: Option<Value>,
    codec: Value,
    steps: u64,
    text: Option<String>,
    settings: String,
}

impl Job {
    fn new(name: &str) -> Self {
        Self {
            folder: tempfile::Builder::new().prefix(&format!("narrows-{name}-")).tempdir().unwrap(),
            model: json!({
                "kind": "gpt", "layers": 3, "hidden": 32, "heads": 2, "vocab": 256, "sequence": 16,
                "global_batch": 0, "precision": "fp32", "optimizer": "adamw", "recompute": "none",
                "exchange": "auto", "boundary": "auto"
            }),
            replicas: vec![],
            microbatches: 1,
            exchange: None,
            codec: json!({"kind": "none"}),
            steps: 1,
            text: Some("In the beginning was the Word, and the Word was with God. ".repeat(50)),
            settings: String::new(),
        }
    }

    /// Each replica by its cuts: `[0, 2, 3]` is two stages, of layers 0..2 and 2..3.
    fn replicas(mut self, cuts: &[&[u32]], microbatches: u32) -> Self {
        self.replicas = cuts.iter().map(|c| c.to_vec()).collect();
        self.microbatches = microbatches;
        self
    }

    fn sparse(self, every: u32) -> Self {
        self.exchange(json!({"kind": "sparse", "top_k": 64, "every": every}))
    }

    fn exchange(mut self, exchange: Value) -> Self {
        self.exchange = Some(exchange);
        self
    }

    fn boundary(mut self, codec: Value) -> Self {
        self.codec = codec;
        self
    }

    fn steps(mut self, steps: u64) -> Self {
        self.steps = steps;
        self
    }

    fn text(mut self, text: &str) -> Self {
        self.text = Some(text.to_owned());
        self
    }

    fn without_text(mut self) -> Self {
        self.text = None;
        self
    }

    fn model(mut self, key: &str, value: Value) -> Self {
        self.model[key] = value;
        self
    }

    fn setting(mut self, toml: &str) -> Self {
        self.settings += toml;
        self
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn write(&self) {
        let folder = self.folder.path();
        fs::write(folder.join("plan.json"), serde_json::to_vec_pretty(&self.plan()).unwrap()).unwrap();
        if let Some(text) = &self.text {
            fs::write(folder.join("train.txt"), text).unwrap();
        }
        let out = self.out();
        let run = format!(
            "[run]\nname = \"test\"\ncluster = \"none.toml\"\nmodel = \"none.toml\"\nplan = \"plan.json\"\n\
             out = {out:?}\nsteps = {}\nseed = 7\nwait_s = 30.0\n[data]\ntrain = \"train.txt\"\n\
             validation = \"train.txt\"\nvalidation_sequences = 2\n[checkpoint]\nevery = 3\nkeep = 2\n{}",
            self.steps, self.settings
        );
        fs::write(folder.join("run.toml"), run).unwrap();
    }

    fn plan(&self) -> Value {
        let mut rank = 0;
        let replicas: Vec<Value> = self.replicas.iter().map(|cuts| self.replica(cuts, &mut rank)).collect();
        let mut model = self.model.clone();
        model["global_batch"] = json!(2 * self.microbatches * self.replicas.len() as u32);
        let all: Vec<usize> = (0..replicas.len()).collect();
        let exchange: Vec<Value> = self
            .exchange
            .iter()
            .map(|kind| {
                let mut exchange = kind.clone();
                exchange["replicas"] = json!(all);
                exchange
            })
            .collect();
        json!({
            "version": 1, "cluster": cluster(rank), "model": model, "micro_batch": 2,
            "schedule": {"kind": "1f1b", "virtual_stages": 1}, "replicas": replicas, "exchange": exchange
        })
    }

    fn replica(&self, cuts: &[u32], rank: &mut u32) -> Value {
        let stages: Vec<Value> = cuts
            .windows(2)
            .map(|layers| {
                let place = json!({"rank": *rank, "host": format!("c-{rank}"), "gpu": 0, "nic": "ethernet"});
                *rank += 1;
                json!({"layers": layers, "ranks": [place]})
            })
            .collect();
        let boundary = json!({"codec": self.codec, "transport": "tcp"});
        json!({
            "microbatches": self.microbatches, "boundaries": vec![boundary; stages.len() - 1], "stages": stages
        })
    }

    fn start(&self, flags: &[&str]) -> Child {
        self.write();
        // A test run in the background inherits an ignored SIGINT, which narrows would respect.
        Command::new("env")
            .args(["--default-signal", env!("CARGO_BIN_EXE_narrows"), "train"])
            .arg(self.folder.path().join("run.toml"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, flags: &[&str]) -> Output {
        wait_with_deadline(&mut self.start(flags), 2 * LONG)
    }

    fn finished(self) -> Self {
        let output = self.run(&["--fresh"]);
        assert!(output.status.success(), "{}", text(&output));
        self
    }

    fn checkpoint(&self, step: u64) -> PathBuf {
        self.out().join(format!("checkpoints/step-{step:08}"))
    }

    fn newest_checkpoint(&self) -> Option<u64> {
        let entries = fs::read_dir(self.out().join("checkpoints")).ok()?;
        let step = |e: fs::DirEntry| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
        entries.flatten().filter_map(step).max()
    }

    fn lines(&self, file: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.out().join(file)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Every rank's tensor of that name, one after another: the whole model's, in order of stages.
    fn flat(&self, name: &str, step: u64) -> Vec<f32> {
        let ranks: usize = self.replicas.iter().map(|c| c.len() - 1).sum();
        (0..ranks).flat_map(|rank| self.tensors(rank, step, |n| n == name)).collect()
    }

    /// All tensors of a unit on one rank.
    fn flat_of(&self, rank: usize, unit: &str, step: u64) -> Vec<f32> {
        self.tensors(rank, step, |name| name.starts_with(unit))
    }

    fn tensors(&self, rank: usize, step: u64, wanted: impl Fn(&str) -> bool) -> Vec<f32> {
        let bytes = fs::read(self.checkpoint(step).join(format!("rank-{rank}.safetensors"))).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let table: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let mut names: Vec<&String> = table.as_object().unwrap().keys().filter(|n| wanted(n)).collect();
        names.sort();
        let data = &bytes[8 + header..];
        let values = |name: &String| {
            let [from, to] = [0, 1].map(|i| table[name]["data_offsets"][i].as_u64().unwrap() as usize);
            data[from..to]
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect::<Vec<_>>()
        };
        names.into_iter().flat_map(values).collect()
    }
}

fn cluster(hosts: u32) -> Value {
    let hosts: Vec<Value> = (0..hosts.max(1)).map(|h| json!({"name": format!("c-{h}")})).collect();
    json!({
        "clusters": [{
            "name": "c", "hosts": hosts, "gpus": 1,
            "gpu": {"name": "any", "memory_bytes": 1_000_000_000u64, "bf16_flops_per_s": 1e9, "fp16_flops_per_s": 1e9,
                    "fp32_flops_per_s": 1e9, "efficiency": 1.0},
            "intra": {"rate_bytes_per_s": 1e9, "latency_s": 1e-5},
            "nic": {"class": "ethernet", "rate_bytes_per_s": 1e8, "count": 1, "latency_s": 1e-4},
            "ethernet": null
        }],
        "links": []
    })
}

fn shards(checkpoint: &Path) -> Vec<String> {
    let manifest: Value =
        serde_json::from_slice(&fs::read(checkpoint.join("manifest.json")).unwrap()).unwrap();
    manifest["shards"].as_array().unwrap().iter().map(|s| s["blake3"].as_str().unwrap().to_owned()).collect()
}

fn no_half_written(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return true };
    entries.flatten().map(|e| e.path()).all(|path| {
        let half = path.extension().is_some_and(|e| e == "tmp" || e == "new" || e == "partial");
        !half && (!path.is_dir() || no_half_written(&path))
    })
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * LONG;
    while !happened() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_with_deadline(child: &mut Child, within: Duration) -> Output {
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.map(|mut p| p.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = drain(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = drain(child.stderr.take().map(|p| Box::new(p) as _));
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            signal(child.id(), "KILL");
            let said = stderr.join().unwrap();
            panic!("not ended after {within:?}: {}", String::from_utf8_lossy(&said));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let pids: String = tasks.map(of_task).collect();
    pids.split_whitespace().filter_map(|p| p.parse().ok()).filter(|&p| rank_of(p).is_some()).collect()
}

fn rank_of(pid: u32) -> Option<u32> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|&b| b == 0).filter_map(|v| std::str::from_utf8(v).ok());
    variables.find_map(|v| v.strip_prefix("RANK=")?.parse().ok())
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie whose parent is gone is about to be reaped.
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}
