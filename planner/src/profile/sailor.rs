//! Sailor's profiles (eth-easl/sailor, `sailor_planner/profiles` and `llm_info.json`): one file of times a model and GPU
//! kind, one file of sizes for all models.
//!
//! ```text
//!   profile.json    { microbatch: { degree: { layer: [forward s, backward s, update s] } } }
//!   llm_info.json   { model: { degree: { layer: { "params_floats": n, "act_mem_bytes": bytes a sequence, .. } } } }
//! ```
//! Layers count from 0, the embedding, to the last, the head. All of them are fp32.
//!
//! Not here: its network tables and quotas.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{Point, Profile, Size, Sizes, Times};
use crate::input::{Document, Fault, InputError, did_you_mean, way};

/// By layer number.
type Layers<T> = BTreeMap<String, T>;
/// By microbatch, then degree.
type TimesFile = BTreeMap<String, BTreeMap<String, Layers<[f64; 3]>>>;
/// By model, then degree.
type SizesFile = BTreeMap<String, BTreeMap<String, Layers<SizeFile>>>;

/// Keys that we do not use are theirs.
#[derive(Debug, Clone, Copy, Deserialize)]
struct SizeFile {
    params_floats: f64,
    act_mem_bytes: f64,
}

impl Profile {
    /// Reads the times of a model on a GPU kind, and its sizes out of the file of all models' sizes.
    ///
    /// # Errors
    /// A file cannot be read or is not of the format; the model has no sizes; layers are missing or times cannot be.
    pub fn read_sailor(times: &Path, sizes: &Path, model: &str) -> Result<Profile, InputError> {
        let profile = Self::read_sailor_times(times)?;
        let document = Document::json(sizes)?;
        let file: SizesFile = document.decode()?;
        let sizes = sizes_of(&file, model, profile.layers).map_err(|fault| document.error(fault))?;
        Ok(Profile { sizes, ..profile })
    }

    /// Reads the times alone.
    ///
    /// # Errors
    /// As [`Profile::read_sailor`].
    pub fn read_sailor_times(path: &Path) -> Result<Profile, InputError> {
        let document = Document::json(path)?;
        let file: TimesFile = document.decode()?;
        let profile = profile(&file).map_err(|fault| document.error(fault))?;
        profile.check().map(|()| profile).map_err(|_| {
            // Points are ours; every one of them was looked at, so nothing but an empty file is left.
            document.error(Fault::here("the file has no measurement"))
        })
    }
}

fn profile(file: &TimesFile) -> Result<Profile, Fault> {
    let mut profile = Profile { layers: 0, points: Vec::new(), sizes: Vec::new() };
    for (micro_batch, degrees) in file {
        for (degree, layers) in degrees {
            let at = way![micro_batch.as_str(), degree.as_str()];
            let numbers = (count(degree), count(micro_batch));
            let (Some(tensor_parallel), Some(micro_batch)) = numbers else {
                return Err(Fault::at(at, "expected whole numbers from 1: a microbatch, in it a degree"));
            };
            let [embedding, layer, head] = parts(layers).map_err(|fault| fault.within(at.clone()))?;
            let [embedding, layer, head] = [embedding, layer, head].map(mean_times);
            let point = Point { tensor_parallel, micro_batch, embedding, layer, head };
            if !point.is_usable() {
                return Err(Fault::at(at, "times must be finite and not negative, a layer's above 0"));
            }
            let found = layers.len() as u32 - 2;
            if profile.layers != 0 && profile.layers != found {
                let what = format!("{found} layers between embedding and head, elsewhere {}", profile.layers);
                return Err(Fault::at(at, what));
            }
            profile.layers = found;
            profile.points.push(point);
        }
    }
    profile.points.sort_unstable_by_key(|p| (p.tensor_parallel, p.micro_batch));
    Ok(profile)
}

fn sizes_of(file: &SizesFile, model: &str, layers: u32) -> Result<Vec<Sizes>, Fault> {
    let Some(degrees) = file.get(model) else {
        let known: Vec<&str> = file.keys().map(String::as_str).collect();
        return Err(Fault::here(format!("no sizes of the model `{model}`")).hint(did_you_mean(model, &known)));
    };
    let mut sizes = Vec::new();
    for (degree, found) in degrees {
        let at = way![model, degree.as_str()];
        let Some(tensor_parallel) = count(degree) else {
            return Err(Fault::at(at, "expected a degree, a whole number from 1"));
        };
        if found.len() as u32 != layers + 2 {
            let what = format!("sizes of {} layers, but times of {}", found.len(), layers + 2);
            return Err(Fault::at(at, what));
        }
        let [embedding, layer, head] = parts(found).map_err(|fault| fault.within(at))?.map(mean_size);
        sizes.push(Sizes { tensor_parallel, embedding, layer, head });
    }
    sizes.sort_unstable_by_key(|s| s.tensor_parallel);
    Ok(sizes)
}

/// The embedding, the layers and the head.
fn parts<T: Copy>(layers: &Layers<T>) -> Result<[Vec<T>; 3], Fault> {
    let numbered: Option<Vec<T>> = (0..layers.len()).map(|i| layers.get(&i.to_string()).copied()).collect();
    match numbered.as_deref() {
        Some([embedding, inner @ .., head]) if !inner.is_empty() => {
            Ok([vec![*embedding], inner.to_vec(), vec![*head]])
        }
        _ => {
            let what = format!(
                "expected layers \"0\" to \"{}\", embedding and head among them",
                layers.len().max(3) - 1
            );
            Err(Fault::here(what))
        }
    }
}

fn mean_times(of: Vec<[f64; 3]>) -> Times {
    let mean = |i: usize| of.iter().map(|t| t[i]).sum::<f64>() / of.len() as f64;
    Times { forward_s: mean(0), backward_s: mean(1) }
}

fn mean_size(of: Vec<SizeFile>) -> Size {
    let mean = |part: fn(&SizeFile) -> f64| of.iter().map(part).sum::<f64>() / of.len() as f64;
    Size { parameters: mean(|s| s.params_floats), saved_bytes: mean(|s| s.act_mem_bytes) }
}

/// A key that counts something, written in the one usual way: no two keys say the same.
fn count(key: &str) -> Option<u32> {
    key.parse().ok().filter(|n: &u32| *n > 0 && n.to_string() == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::compute::Pass;
    use crate::profile::Part;

    /// Two layers; degree 2 only at microbatch 4.
    const TIMES: &str = r#"{
        "4": {"2": {"0": [0.001, 0, 0], "1": [0.01, 0.02, 0.5], "2": [0.03, 0.04, 0.5], "3": [0.1, 0.3, 0.5]},
              "1": {"0": [0.002, 0, 0], "1": [0.02, 0.04, 0.5], "2": [0.02, 0.04, 0.5], "3": [0.2, 0.6, 0.5]}},
        "16": {"1": {"0": [0.004, 0, 0], "1": [0.08, 0.16, 1], "2": [0.08, 0.16, 1], "3": [0.8, 2, 1]}}}"#;
    const SIZES: &str = r#"{"own": {
        "1": {"0": {"params_floats": 50, "act_mem_bytes": 8, "act_mem_floats": 2},
              "1": {"params_floats": 10, "act_mem_bytes": 300}, "2": {"params_floats": 10, "act_mem_bytes": 100},
              "3": {"params_floats": 60, "act_mem_bytes": 900}}}}"#;

    fn read(times: &str, sizes: &str, model: &str) -> Result<Profile, InputError> {
        let folder = tempfile::tempdir().unwrap();
        let [t, s] = ["profile.json", "llm_info.json"].map(|name| folder.path().join(name));
        std::fs::write(&t, times).unwrap();
        std::fs::write(&s, sizes).unwrap();
        Profile::read_sailor(&t, &s, model)
    }

    #[test]
    fn times_are_found_by_microbatch_and_degree() {
        let profile = read(TIMES, SIZES, "own").unwrap();
        let keys: Vec<_> = profile.points.iter().map(|p| (p.tensor_parallel, p.micro_batch)).collect();
        assert_eq!((profile.layers, keys), (2, vec![(1, 4), (1, 16), (2, 4)]));
        assert_eq!(profile.part_s(Part::Embedding, 4, 2, Pass::Forward), Some(0.001));
        assert_eq!(profile.layer_s(4, 2, Pass::Forward), Some(0.02), "the mean of unlike layers");
        assert_eq!(profile.layer_s(4, 2, Pass::BackwardInput), Some(0.015), "half of backward");
        assert_eq!(profile.part_s(Part::Head, 16, 1, Pass::BackwardWeight), Some(1.0));
    }

    #[test]
    fn sizes_are_found_by_degree_where_given() {
        let profile = read(TIMES, SIZES, "own").unwrap();
        assert_eq!(profile.size(Part::Layer, 1), Some(Size { parameters: 10.0, saved_bytes: 200.0 }));
        assert_eq!(profile.size(Part::Head, 1), Some(Size { parameters: 60.0, saved_bytes: 900.0 }));
        assert_eq!(profile.size(Part::Layer, 2), None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let times = |times: &str| read(times, SIZES, "own").unwrap_err();
        assert!(times("{}").message().contains("no measurement"));
        for key in ["x", "0", "01", "-1"] {
            assert!(
                times(&format!(r#"{{"{key}": {{"1": {{}}}}}}"#)).message().contains("whole numbers"),
                "{key}"
            );
        }
        let missing = times(r#"{"1": {"1": {"0": [1, 1, 1], "1": [1, 1, 1], "3": [1, 1, 1]}}}"#);
        assert!(missing.message().contains("expected layers \"0\" to \"2\""), "{missing}");
        let short = times(r#"{"1": {"1": {"0": [1, 1, 1], "1": [1, 1], "2": [1, 1, 1]}}}"#);
        assert!(short.line_and_column().is_some(), "{short}");
        let negative = r#"{"1": {"1": {"0": [0, 0, 0], "1": [-1, 1, 0], "2": [0, 0, 0]}}}"#;
        assert!(times(negative).message().contains("not negative"));
        let unlike = TIMES.replace(r#", "3": [0.8, 2, 1]"#, "");
        assert!(times(&unlike).message().contains("layers between embedding and head, elsewhere"));
    }

    #[test]
    fn sizes_of_another_model_are_refused() {
        let unknown = read(TIMES, SIZES, "owm").unwrap_err();
        assert_eq!(unknown.message(), "no sizes of the model `owm`");
        assert!(unknown.hint().unwrap().contains("own"));
        let short = SIZES.replace(r#""3": {"#, r#""03": {"#);
        assert!(read(TIMES, &short, "own").unwrap_err().message().contains("expected layers"));
    }
}
