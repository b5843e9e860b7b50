//! Metis's profiles (SamsungLabs/Metis, `profile_data_samples`): a folder of one file a GPU kind, tensor-parallel degree
//! and microbatch.
//!
//! ```text
//!   DeviceType.A100_tp2_bs4.json   { "execution_time": { "layer_compute_total_ms": [embedding, layer, .., head],
//!                                                        "forward_backward_time_ms": 292.8, .. }, .. }
//! ```
//! A layer's figure is forward and backward together: a third is taken as forward, as by FLOPs. What the whole pass
//! took beyond the sum of its layers goes to the head, as Metis's estimate has it in the last stage. Worked: layers of
//! 9, 21 and 30 ms, whole 72 ms: the head takes 42.
//!
//! Not here: its memory, which is a layer's states and activations in one figure, and its optimiser's time.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Point, Profile, Times};
use crate::input::{Document, Fault, InputError, way};

/// One file; keys that we do not use are theirs.
#[derive(Debug, Deserialize)]
struct PointFile {
    execution_time: ExecutionTime,
}

#[derive(Debug, Deserialize)]
struct ExecutionTime {
    layer_compute_total_ms: Vec<f64>,
    forward_backward_time_ms: Option<f64>,
}

impl Profile {
    /// Reads the files of a GPU kind (`A100` for `DeviceType.A100_tp1_bs1.json`) out of a folder of Metis's profiles.
    ///
    /// # Errors
    /// The folder cannot be read or has no file of the kind; a file is not of the format, has fewer than three entries
    /// (embedding, layers, head), times that cannot be, or another number of layers than the others.
    pub fn read_metis(folder: &Path, kind: &str) -> Result<Profile, InputError> {
        let files = files_of(folder, kind).map_err(|e| InputError::unreadable(folder, &e))?;
        let mut profile = Profile { layers: 0, points: Vec::new(), sizes: Vec::new() };
        for (tensor_parallel, micro_batch, path) in files {
            let document = Document::json(&path)?;
            let file: PointFile = document.decode()?;
            let times = &file.execution_time;
            let point = point(tensor_parallel, micro_batch, times).map_err(|fault| document.error(fault))?;
            let layers = times.layer_compute_total_ms.len() as u32 - 2;
            if profile.layers != 0 && profile.layers != layers {
                let what = format!(
                    "{layers} layers between embedding and head, the files before have {}",
                    profile.layers
                );
                return Err(document.error(Fault::at(way!["execution_time", "layer_compute_total_ms"], what)));
            }
            profile.layers = layers;
            profile.points.push(point);
        }
        Ok(profile)
    }
}

/// Degree, microbatch and path of each file of the kind, in that order.
fn files_of(folder: &Path, kind: &str) -> std::io::Result<Vec<(u32, u32, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if let Some((degree, micro_batch)) = entry.file_name().to_str().and_then(|name| measured(name, kind))
        {
            files.push((degree, micro_batch, entry.path()));
        }
    }
    if files.is_empty() {
        let what = format!("no file DeviceType.{kind}_tp<degree>_bs<microbatch>.json in it");
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, what));
    }
    files.sort_unstable();
    Ok(files)
}

/// Degree and microbatch that a file name of the kind says.
fn measured(name: &str, kind: &str) -> Option<(u32, u32)> {
    let rest = name.strip_prefix("DeviceType.")?.strip_prefix(kind)?.strip_prefix("_tp")?;
    let (degree, micro_batch) = rest.strip_suffix(".json")?.split_once("_bs")?;
    Some((degree.parse().ok().filter(|d| *d > 0)?, micro_batch.parse().ok().filter(|b| *b > 0)?))
}

fn point(tensor_parallel: u32, micro_batch: u32, times: &ExecutionTime) -> Result<Point, Fault> {
    let at = || way!["execution_time", "layer_compute_total_ms"];
    let [embedding, layers @ .., head] = &times.layer_compute_total_ms[..] else {
        return Err(Fault::at(at(), "expected the embedding, at least one layer and the head"));
    };
    if layers.is_empty() {
        return Err(Fault::at(at(), "expected at least one layer between embedding and head"));
    }
    let sum: f64 = times.layer_compute_total_ms.iter().sum();
    let beyond = times.forward_backward_time_ms.map_or(0.0, |whole| (whole - sum).max(0.0));
    let seconds = |ms: f64| Times { forward_s: ms / 3e3, backward_s: ms / 1.5e3 };
    let layer = seconds(layers.iter().sum::<f64>() / layers.len() as f64);
    let point = Point {
        tensor_parallel,
        micro_batch,
        embedding: seconds(*embedding),
        layer,
        head: seconds(head + beyond),
    };
    if point.is_usable() {
        return Ok(point);
    }
    Err(Fault::at(at(), "times must be finite and not negative, and those of the layers above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::compute::Pass;
    use crate::profile::Part;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn file(whole_ms: f64, layers_ms: &str) -> String {
        format!(
            r#"{{"model": {{"model_name": "own"}}, "execution_memory": {{"total_memory": 5}},
                "execution_time": {{"total_time_ms": 99, "forward_backward_time_ms": {whole_ms},
                                    "optimizer_time_ms": 4.5, "layer_compute_total_ms": {layers_ms}}}}}"#
        )
    }

    #[test]
    fn the_headers_worked_numbers() {
        let folder = folder(&[("DeviceType.A100_tp1_bs1.json", &file(72.0, "[9, 21, 30]"))]);
        let profile = Profile::read_metis(folder.path(), "A100").unwrap();
        let forward = |part| profile.part_s(part, 1, 1, Pass::Forward).unwrap();
        for (part, seconds) in [(Part::Embedding, 0.009), (Part::Layer, 0.021), (Part::Head, 0.042)] {
            assert!((forward(part) - seconds / 3.0).abs() < 1e-12, "{part:?}");
        }
        let whole: f64 = crate::cost::compute::PASSES
            .iter()
            .map(|&pass| profile.stage_s(0..1, 1, 1, 1, pass).unwrap())
            .sum();
        assert!((whole - 0.072).abs() < 1e-12);
    }

    #[test]
    fn files_of_the_kind_are_read_by_degree_and_microbatch_and_others_left_alone() {
        let ten = file(0.0, "[1, 10, 10, 1]");
        let folder = folder(&[
            ("DeviceType.A100_tp2_bs16.json", &ten),
            ("DeviceType.A100_tp2_bs4.json", &ten),
            ("DeviceType.A100_tp1_bs1.json", &ten),
            ("DeviceType.V100_tp1_bs1.json", "not even JSON"),
            ("DeviceType.A100_tp0_bs1.json", "neither"),
            ("README.md", ""),
        ]);
        let profile = Profile::read_metis(folder.path(), "A100").unwrap();
        let keys: Vec<_> = profile.points.iter().map(|p| (p.tensor_parallel, p.micro_batch)).collect();
        assert_eq!((profile.layers, keys), (2, vec![(1, 1), (2, 4), (2, 16)]));
        assert!(profile.check().is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = file(0.0, "[1, 10, 1]");
        let error = |files: &[(&str, &str)]| {
            let folder = folder(files);
            Profile::read_metis(folder.path(), "A100").unwrap_err().message().to_owned()
        };
        assert!(error(&[]).contains("no file DeviceType.A100_tp"), "{}", error(&[]));
        let one = |text: &str| error(&[("DeviceType.A100_tp1_bs1.json", text)]);
        assert!(one(&file(0.0, "[1, 1]")).contains("at least one layer"));
        assert!(one(&file(0.0, "[1]")).contains("expected the embedding"));
        assert!(one(&file(0.0, "[1, -1, 1]")).contains("not negative"));
        assert!(one("{}").contains("execution_time"));
        let two = [
            ("DeviceType.A100_tp1_bs1.json", &*good),
            ("DeviceType.A100_tp1_bs2.json", &file(0.0, "[1, 2, 2, 1]")),
        ];
        assert!(error(&two).contains("2 layers between embedding and head, the files before have 1"));
    }
}
