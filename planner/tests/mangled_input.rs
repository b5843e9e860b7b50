//! Whatever the bytes, reading ends in a value or an error that can be shown, never in a panic; and a plan
//! that is accepted comes back the same when written.

use std::fs;
use std::path::Path;

use narrows_planner::input::InputError;
use narrows_planner::{inventory, model, plan};
use proptest::prelude::*;

/// Reads the bytes as each kind of file, and shows what is wrong.
fn read_as_anything(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("any");
    fs::write(&path, bytes).expect("a file");
    let plan = plan::read(&path);
    if let Ok(plan) = &plan {
        plan::write(plan, &path).expect("written");
        assert_eq!(plan::read(&path).as_ref(), Ok(plan));
        return;
    }
    let errors = [inventory::read(&path).err(), model::read(&path).err(), published(&path).err(), plan.err()];
    for error in errors.into_iter().flatten() {
        assert!(error.to_string().starts_with("error: "));
        assert!(!error.coloured().is_empty());
        assert!(error.line_and_column().is_none_or(|(line, column)| line > 0 && column > 0));
    }
}

/// The model whose published configuration the file is.
fn published(config: &Path) -> Result<model::Model, InputError> {
    let path = config.with_extension("toml");
    let text = "model = { huggingface = \"any\", sequence = 64 }\ntrain = { global_batch = 8 }\n";
    fs::write(&path, text).expect("a file");
    model::read(&path)
}

/// A plan with everything inside, as the planner writes it, the two files beside it, an inventory with
/// sites and a published configuration.
fn good_files() -> [Vec<u8>; 5] {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let (cluster, model) =
        (configs.join("clusters/holmes-hybrid-4.toml"), configs.join("models/gpt-3.6b.toml"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plan.json");
    let text = format!(
        r#"{{"version": 1, "cluster": {cluster:?}, "model": {model:?}, "micro_batch": 4,
        "schedule": {{"kind": "1f1b", "virtual_stages": 1}},
        "replicas": [{{"microbatches": 192, "stages": [
            {{"layers": [0, 16], "ranks": [{{"rank": 0, "host": "ib-0", "gpu": 0, "nic": "infiniband"}}]}},
            {{"layers": [16, 30], "ranks": [{{"rank": 1, "host": "roce-1", "gpu": 7, "nic": "roce"}}]}}],
            "boundaries": [{{"codec": {{"kind": "subspace", "rank": 64}}, "transport": "tcp"}}]}}]}}"#
    );
    fs::write(&path, text).expect("a file");
    plan::write(&plan::read(&path).unwrap_or_else(|e| panic!("{e}")), &path).expect("written");
    let (sites, config) =
        (configs.join("clusters/mixed-priced.toml"), configs.join("models/llama-3-70b.json"));
    [&path, &cluster, &model, &sites, &config].map(|path| fs::read(path).expect("a file"))
}

/// A change of a few bytes: where, how many go, what comes.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Vec<u8>)>> {
    let token = prop::sample::select(vec![
        "0",
        "-1",
        "9",
        "1e999",
        "4294967295",
        "18446744073709551615",
        "null",
        "\"\"",
        "nan",
        "[",
        "]",
        "{",
        "}",
        ",",
        "=",
        "\n",
        "\r",
        "é",
        "\u{0}",
        "\u{1b}",
        "name",
        "\"B\"",
    ]);
    let new =
        prop_oneof![token.prop_map(|t| t.as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 0..4)];
    prop::collection::vec((any::<prop::sample::Index>(), 0..24usize, new), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_as_anything(&bytes);
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "[ -~\\n\\r\\t\u{0}-\u{2ff}]{0,80}") {
        read_as_anything(text.as_bytes());
    }

    #[test]
    fn a_good_file_with_some_bytes_changed_is_read_without_a_panic(which in 0..5usize, edits in edits()) {
        thread_local!(static GOOD: [Vec<u8>; 5] = good_files());
        let mut bytes = GOOD.with(|good| good[which].clone());
        for (at, gone, new) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + gone).min(bytes.len());
            bytes.splice(at..end, new);
        }
        read_as_anything(&bytes);
    }

    #[test]
    fn a_good_file_cut_off_anywhere_is_an_error_or_whole(which in 0..5usize, at in any::<prop::sample::Index>()) {
        thread_local!(static GOOD: [Vec<u8>; 5] = good_files());
        let bytes = GOOD.with(|good| good[which].clone());
        read_as_anything(&bytes[..at.index(bytes.len() + 1)]);
    }
}
