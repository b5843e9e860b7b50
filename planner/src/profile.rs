//! What a GPU kind was measured to take for a model's parts, in place of FLOPs over an achieved rate.
//!
//! ```text
//!   Metis    a folder, one file a degree and microbatch ─┐
//!   Sailor   profile.json, and llm_info.json for sizes  ─┴─> Profile: seconds by (degree, microbatch) of the
//!                                                            embedding, a layer, the head; sizes where given
//! ```
//! A microbatch between two measured ones takes what lies on the line between them. Beyond the largest, the largest in
//! proportion; below the smallest, the smallest whole: both are guesses, which [`Profile::coverage`] tells from
//! measurements. A degree that was not measured has no time at all. Layers are alike: their mean counts.
//!
//! Times of a degree above 1 hold its all-reduces: [`crate::cost::tensor`] does not come on top. The sources measure
//! backward whole; its two passes get half each (1F1B runs them back to back).
//!
//! Not here: the optimiser's step (milliseconds), who has a profile (`inventory`), what there is without one (`cost`).

mod metis;
mod sailor;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::compute::Pass;
use crate::input::{Fault, InputError, way};

/// Measured seconds of a model's parts on one GPU kind, and sizes where the source has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Transformer layers of the model that was measured.
    pub layers: u32,
    /// In order of degree, then microbatch; each pair once.
    pub points: Vec<Point>,
    /// In order of degree; empty where the source gives none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Sizes>,
}

/// One measurement: a microbatch through the model, on each GPU of a tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// GPUs of the group.
    pub tensor_parallel: u32,
    /// Sequences.
    pub micro_batch: u32,
    /// Of the embedding.
    pub embedding: Times,
    /// Of one layer.
    pub layer: Times,
    /// Of the head.
    pub head: Times,
}

/// Seconds of a part's passes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// Forward.
    pub forward_s: f64,
    /// Backward, input and weights.
    pub backward_s: f64,
}

/// What the parts hold on each GPU of a tensor-parallel group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// GPUs of the group.
    pub tensor_parallel: u32,
    /// Of the embedding.
    pub embedding: Size,
    /// Of one layer.
    pub layer: Size,
    /// Of the head.
    pub head: Size,
}

/// What a part holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Parameters.
    pub parameters: f64,
    /// Bytes kept for backward, per sequence, in the precision that was measured.
    pub saved_bytes: f64,
}

/// A part of the model that is measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Token and position embedding.
    Embedding,
    /// One transformer layer.
    Layer,
    /// Last norm, projection to the vocabulary, loss.
    Head,
}

/// How near to a measurement a time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// It was measured.
    Measured,
    /// Between two measured microbatches.
    Between {
        /// The next smaller.
        below: u32,
        /// The next larger.
        above: u32,
    },
    /// Below all measured microbatches: the smallest counts whole.
    Smallest(u32),
    /// Above all measured microbatches: the largest in proportion.
    Largest(u32),
}

impl Profile {
    /// Reads what an inventory's `profile = "path"` names: a folder is Metis's, `kind` in its file names; a file is
    /// Sailor's times.
    ///
    /// # Errors
    /// As [`Profile::read_metis`] and [`Profile::read_sailor_times`].
    pub fn read(path: &Path, kind: &str) -> Result<Profile, InputError> {
        if path.is_dir() { Self::read_metis(path, kind) } else { Self::read_sailor_times(path) }
    }

    /// Seconds of one layer's pass over a microbatch; `None` where the degree was not measured.
    pub fn layer_s(&self, micro_batch: u32, tensor_parallel: u32, pass: Pass) -> Option<f64> {
        self.part_s(Part::Layer, micro_batch, tensor_parallel, pass)
    }

    /// Seconds of a part's pass over a microbatch; `None` where the degree was not measured.
    pub fn part_s(&self, part: Part, micro_batch: u32, tensor_parallel: u32, pass: Pass) -> Option<f64> {
        let row = self.row(tensor_parallel);
        let at = |measured: u32| {
            let point = row.iter().find(|p| p.micro_batch == measured);
            point.map(|p| p.part(part).pass_s(pass))
        };
        match self.coverage(micro_batch, tensor_parallel)? {
            Coverage::Measured => at(micro_batch),
            Coverage::Between { below, above } => {
                let share = f64::from(micro_batch - below) / f64::from(above - below);
                Some(at(below)? * (1.0 - share) + at(above)? * share)
            }
            Coverage::Smallest(smallest) => at(smallest),
            Coverage::Largest(largest) => Some(at(largest)? * f64::from(micro_batch) / f64::from(largest)),
        }
    }

    /// Seconds of a pass of the stage that holds `stage` of the model's `layers`: what the cost model asks for.
    /// `None` where the degree was not measured.
    pub fn stage_s(
        &self,
        stage: Range<u32>,
        layers: u32,
        micro_batch: u32,
        tensor_parallel: u32,
        pass: Pass,
    ) -> Option<f64> {
        let seconds = |part| self.part_s(part, micro_batch, tensor_parallel, pass);
        let ends = [(stage.start == 0, Part::Embedding), (stage.end == layers, Part::Head)];
        let inner = f64::from(stage.end - stage.start) * seconds(Part::Layer)?;
        ends.iter().filter(|(has, _)| *has).try_fold(inner, |sum, (_, part)| Some(sum + seconds(*part)?))
    }

    /// Whether a microbatch's times were measured, and what stands for them if not; `None` where the degree was not.
    pub fn coverage(&self, micro_batch: u32, tensor_parallel: u32) -> Option<Coverage> {
        let row = self.row(tensor_parallel);
        let above = row.partition_point(|p| p.micro_batch < micro_batch);
        match (row[..above].last(), row.get(above)) {
            (None, None) => None,
            (_, Some(p)) if p.micro_batch == micro_batch => Some(Coverage::Measured),
            (Some(below), Some(above)) => {
                Some(Coverage::Between { below: below.micro_batch, above: above.micro_batch })
            }
            (None, Some(smallest)) => Some(Coverage::Smallest(smallest.micro_batch)),
            (Some(largest), None) => Some(Coverage::Largest(largest.micro_batch)),
        }
    }

    /// Tensor-parallel degrees that were measured, ascending.
    pub fn degrees(&self) -> Vec<u32> {
        let mut degrees: Vec<u32> = self.points.iter().map(|p| p.tensor_parallel).collect();
        degrees.dedup();
        degrees
    }

    /// What a part holds on each GPU of a group; `None` where the source does not say.
    pub fn size(&self, part: Part, tensor_parallel: u32) -> Option<Size> {
        let sizes = self.sizes.iter().find(|s| s.tensor_parallel == tensor_parallel)?;
        Some(match part {
            Part::Embedding => sizes.embedding,
            Part::Layer => sizes.layer,
            Part::Head => sizes.head,
        })
    }

    /// That the measurements can be looked up: some, in order, each once, finite and not negative.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let key = |p: &Point| (p.tensor_parallel, p.micro_batch);
        if self.points.is_empty() || self.layers == 0 {
            return Err(Fault::at(way!["points"], "the profile measures nothing"));
        }
        if let Some(i) = self.points.windows(2).position(|w| key(&w[0]) >= key(&w[1])) {
            let (tp, mb) = key(&self.points[i + 1]);
            let what = format!("degree {tp}, microbatch {mb} is out of order or stands twice");
            return Err(Fault::at(way!["points", i + 1], what));
        }
        match self.points.iter().position(|p| !p.is_usable()) {
            Some(i) => {
                let what = "every time must be finite and not negative, a layer's above 0, degree and microbatch at least 1";
                Err(Fault::at(way!["points", i], what))
            }
            None => Ok(()),
        }
    }

    /// The points of a degree, by microbatch.
    fn row(&self, tensor_parallel: u32) -> &[Point] {
        let begin = self.points.partition_point(|p| p.tensor_parallel < tensor_parallel);
        let end = self.points.partition_point(|p| p.tensor_parallel <= tensor_parallel);
        &self.points[begin..end]
    }
}

impl Point {
    fn part(&self, part: Part) -> Times {
        match part {
            Part::Embedding => self.embedding,
            Part::Layer => self.layer,
            Part::Head => self.head,
        }
    }

    fn is_usable(&self) -> bool {
        let whole = self.tensor_parallel > 0 && self.micro_batch > 0;
        let times = [self.embedding, self.layer, self.head].map(|t| [t.forward_s, t.backward_s]);
        whole
            && times.iter().flatten().all(|s| s.is_finite() && *s >= 0.0)
            && self.layer.forward_s + self.layer.backward_s > 0.0
    }
}

impl Times {
    fn pass_s(self, pass: Pass) -> f64 {
        match pass {
            Pass::Forward => self.forward_s,
            Pass::BackwardInput | Pass::BackwardWeight => self.backward_s / 2.0,
        }
    }
}

/// The note for a report, to stand behind "microbatch 16: ".
impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Coverage::Measured => write!(f, "as measured"),
            Coverage::Between { below, above } => {
                write!(f, "not measured, taken on the line between {below} and {above}")
            }
            Coverage::Smallest(smallest) => {
                write!(f, "not measured, taken as slow as the smallest that was, {smallest}")
            }
            Coverage::Largest(largest) => {
                write!(f, "not measured, taken in proportion to the largest that was, {largest}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(forward_s: f64, backward_s: f64) -> Times {
        Times { forward_s, backward_s }
    }

    fn point(tensor_parallel: u32, micro_batch: u32, layer: Times) -> Point {
        Point { tensor_parallel, micro_batch, embedding: times(0.5, 0.0), layer, head: times(3.0, 6.0) }
    }

    /// Degree 1 at microbatches 2, 4 and 8; degree 4 at 1.
    fn profile() -> Profile {
        let points = vec![
            point(1, 2, times(3.0, 6.0)),
            point(1, 4, times(4.0, 8.0)),
            point(1, 8, times(8.0, 16.0)),
            point(4, 1, times(1.0, 2.0)),
        ];
        Profile { layers: 12, points, sizes: Vec::new() }
    }

    #[test]
    fn a_measured_microbatch_takes_what_was_measured() {
        assert_eq!(profile().layer_s(4, 1, Pass::Forward), Some(4.0));
        assert_eq!(profile().layer_s(4, 1, Pass::BackwardInput), Some(4.0));
        assert_eq!(profile().layer_s(4, 1, Pass::BackwardWeight), Some(4.0));
        assert_eq!(profile().coverage(4, 1), Some(Coverage::Measured));
    }

    #[test]
    fn one_in_between_lies_on_the_line() {
        assert_eq!(profile().layer_s(3, 1, Pass::Forward), Some(3.5));
        assert_eq!(profile().layer_s(7, 1, Pass::Forward), Some(7.0));
        assert_eq!(profile().coverage(7, 1), Some(Coverage::Between { below: 4, above: 8 }));
    }

    #[test]
    fn beyond_what_was_measured_it_is_never_faster_per_sequence_and_says_so() {
        assert_eq!(profile().layer_s(1, 1, Pass::Forward), Some(3.0));
        assert_eq!(profile().coverage(1, 1), Some(Coverage::Smallest(2)));
        assert_eq!(profile().layer_s(16, 1, Pass::Forward), Some(16.0));
        let note = profile().coverage(16, 1).unwrap().to_string();
        assert_eq!(note, "not measured, taken in proportion to the largest that was, 8");
    }

    #[test]
    fn a_degree_that_was_not_measured_has_no_time() {
        assert_eq!(profile().degrees(), [1, 4]);
        for tensor_parallel in [0, 2, 8] {
            assert_eq!(profile().layer_s(1, tensor_parallel, Pass::Forward), None);
            assert_eq!(profile().stage_s(0..3, 12, 1, tensor_parallel, Pass::Forward), None);
        }
    }

    #[test]
    fn a_stage_is_its_layers_and_the_ends_it_holds() {
        let forward = |stage| profile().stage_s(stage, 12, 1, 4, Pass::Forward).unwrap();
        assert_eq!([0..3, 3..9, 9..12, 0..12].map(forward), [3.5, 6.0, 6.0, 15.5]);
    }

    #[test]
    fn what_cannot_be_looked_up_is_refused() {
        assert_eq!(profile().check(), Ok(()));
        let broken: [fn(&mut Profile); 5] = [
            |p| p.points.clear(),
            |p| p.points.swap(0, 1),
            |p| p.points[1] = p.points[0],
            |p| p.points[3].head.backward_s = f64::NAN,
            |p| p.points[3].layer = Times { forward_s: 0.0, backward_s: 0.0 },
        ];
        for (i, breaks) in broken.iter().enumerate() {
            let mut profile = profile();
            breaks(&mut profile);
            assert!(profile.check().is_err(), "{i}");
        }
    }

    #[test]
    fn it_travels_in_a_plan() {
        let text = serde_json::to_string(&profile()).unwrap();
        assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile());
    }
}
