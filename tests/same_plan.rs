//! Same input, same bytes: plans made by processes of their own differ in nothing but how long each searched.

use std::path::Path;
use std::process::Command;

/// Inventory, model, options.
const PROBLEMS: &[(&str, &str, &[&str])] = &[
    ("quickstart/cluster.toml", "quickstart/model.toml", &["--native"]),
    ("clusters/holmes-hybrid-2.toml", "models/gpt-3.6b.toml", &["--gap", "5%"]),
];

#[test]
fn two_processes_write_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for (index, (cluster, model, options)) in PROBLEMS.iter().enumerate() {
        let [first, second] = ["first", "second"].map(|name| {
            let plan = folder.path().join(format!("{index}-{name}.json"));
            let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
            let output = Command::new(env!("CARGO_BIN_EXE_narrows"))
                .arg("plan")
                .args([configs.join(cluster), configs.join(model)])
                .arg("-o")
                .arg(&plan)
                .args(*options)
                .output()
                .unwrap();
            assert!(output.status.success(), "{cluster}: {}", String::from_utf8_lossy(&output.stderr));
            without_time(&std::fs::read_to_string(plan).unwrap())
        });
        assert!(first.contains("\"objective_s\""), "{cluster}: the proof is part of it");
        assert_eq!(first, second, "{cluster}");
    }
}

/// Less the one line that tells the seconds of the search.
fn without_time(plan: &str) -> String {
    let (times, others): (Vec<&str>, Vec<&str>) = plan.lines().partition(|line| line.contains("\"wall_s\""));
    assert_eq!(times.len(), 1, "a plan says once how long was searched");
    others.join("\n")
}
