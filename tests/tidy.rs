//! The house checks itself: imports run one way, every module says what it is, unsafe stays where it is listed, nothing
//! prints but the command line, documents point at files that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// Files that may hold unsafe code, each with a safety comment and a test.
const UNSAFE: &[&str] = &[
    "compress/src/product.rs",             // gemm over slices
    "runtime/src/data.rs",                 // mapping a text
    "runtime/src/engine/matrix.rs",        // gemm over views of slices
    "runtime/src/engine/simd.rs",          // calling code compiled for the CPU at hand
    "runtime/src/launch/leash.rs",         // what a child does between fork and exec
    "transport/src/shape/shared_clock.rs", // atomics in memory that ranks share
];

/// Crates and what they must not name.
const FORBIDDEN: &[(&str, &[&str])] = &[
    (
        "compress/src",
        &["narrows_planner", "narrows_transport", "narrows_runtime", "tokio", "std::net", "std::fs"],
    ),
    ("planner/src", &["narrows_transport", "narrows_runtime", "tokio", "std::net", "std::process::Command"]),
    ("transport/src", &["narrows_planner", "narrows_compress", "narrows_runtime"]),
    (
        "runtime/src/engine",
        &["narrows_planner", "narrows_transport", "narrows_compress", "std::fs", "std::net"],
    ),
];

#[test]
fn imports_run_one_way() {
    for (folder, names) in FORBIDDEN {
        for (path, text) in sources(folder) {
            let code = without_tests(&text);
            for name in *names {
                let used = code.lines().find(|l| !l.trim_start().starts_with("//") && l.contains(name));
                assert!(used.is_none(), "{}: names {name}: {}", path.display(), used.unwrap_or_default());
            }
        }
    }
}

#[test]
fn every_module_begins_with_what_it_is() {
    for folder in ["src", "planner/src", "compress/src", "transport/src", "runtime/src"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{}: no header", path.display());
            assert!(!path.ends_with("mod.rs"), "{}: name it after its folder", path.display());
        }
    }
}

#[test]
fn unsafe_code_stays_where_it_is_listed_and_says_why_it_is_sound() {
    for folder in ["src", "planner/src", "compress/src", "transport/src", "runtime/src"] {
        for (path, text) in sources(folder) {
            let code = without_tests(&text);
            let lines: Vec<&str> = code.lines().collect();
            for (number, line) in lines.iter().enumerate() {
                let is_code = !line.trim_start().starts_with("//");
                if !is_code || !line.contains("unsafe ") || line.contains("unsafe_code") {
                    continue;
                }
                let relative = path.strip_prefix(root()).unwrap().display().to_string();
                assert!(UNSAFE.contains(&relative.as_str()), "{relative}:{}: unsafe, not listed", number + 1);
                let above = lines[number.saturating_sub(6)..=number].join("\n");
                assert!(
                    above.contains("SAFETY") || above.contains("# Safety"),
                    "{relative}:{}: no reason",
                    number + 1
                );
            }
        }
    }
}

#[test]
fn the_listed_files_exist() {
    for path in UNSAFE {
        assert!(root().join(path).exists(), "{path} is listed but gone");
    }
}

#[test]
fn documents_link_to_files_that_exist() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    pages.extend(files(&root().join("docs"), "md"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{}: links to {target}, which does not exist", page.display());
        }
    }
}

#[test]
fn every_decision_is_in_the_index() {
    let folder = root().join("docs/decisions");
    let index = fs::read_to_string(folder.join("README.md")).unwrap();
    for page in files(&folder, "md") {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || index.contains(name), "{name} is not in docs/decisions/README.md");
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let paths = files(&root().join(folder), "rs");
    assert!(!paths.is_empty(), "{folder} holds no source");
    paths.into_iter().map(|p| (p.clone(), fs::read_to_string(&p).unwrap())).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A file's text up to its tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}
