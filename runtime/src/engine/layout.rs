//! Where each tensor lies in the flat buffers of a stage.
//!
//! One table per unit, in order: names, shapes and initial values. Offsets, [`TensorSpec`]s and the typed views that
//! the arithmetic uses all come from it.

use std::ops::Range;

use super::GptConfig;
use super::initial::Initial;

/// One named tensor of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// `embedding.token`, `layer.3.qkv.weight`, `head.weight`…: the layer counts from the model's first.
    pub name: String,
    /// Its place in the flat buffers of this stage, in elements.
    pub range: Range<usize>,
    /// Row-major shape; a linear map is `[inputs, outputs]`.
    pub shape: Vec<usize>,
}

/// A piece of the model that unlike replicas exchange as a whole: contiguous in every stage that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `embedding`, `layer.3`, `head`.
    pub name: String,
    /// Its place in the flat buffers of this stage, in elements.
    pub range: Range<usize>,
}

/// The tensors of a stage, by unit.
pub(super) struct Layout {
    pub tensors: Vec<TensorSpec>,
    pub initial: Vec<Initial>,
    pub units: Vec<Unit>,
}

impl Layout {
    pub fn new(config: &GptConfig, layers: &Range<usize>) -> Self {
        let mut layout = Layout { tensors: vec![], initial: vec![], units: vec![] };
        if layers.start == 0 {
            layout.push("embedding".into(), &embedding(config));
        }
        for layer in layers.clone() {
            layout.push(format!("layer.{layer}"), &block(config));
        }
        if layers.end == config.layers {
            layout.push("head".into(), &head(config));
        }
        layout
    }

    /// Elements of a flat buffer.
    pub fn len(&self) -> usize {
        self.units.last().map_or(0, |unit| unit.range.end)
    }

    fn push(&mut self, unit: String, entries: &[Entry]) {
        let start = self.len();
        let mut end = start;
        for (name, shape, initial) in entries {
            let range = end..end + shape.iter().product::<usize>();
            end = range.end;
            self.tensors.push(TensorSpec { name: format!("{unit}.{name}"), range, shape: shape.clone() });
            self.initial.push(*initial);
        }
        self.units.push(Unit { name: unit, range: start..end });
    }
}

/// The tensors of one kind of unit as views into a flat buffer: `S` is `&[f32]` or `&mut [f32]`.
macro_rules! unit_view {
    ($(#[$doc:meta])* $unit:ident from $table:ident: $($tensor:ident),+) => {
        $(#[$doc])*
        pub(super) struct $unit<S> { $(pub $tensor: S),+ }

        impl<'a> $unit<&'a [f32]> {
            pub fn of(config: &GptConfig, mut unit: &'a [f32]) -> Self {
                let mut sizes = $table(config).into_iter().map(|(_, shape, _)| shape.iter().product());
                let mut next = || {
                    let size = sizes.next().expect("the table names every tensor of the view");
                    unit.split_off(..size).expect("the unit is as long as its table says")
                };
                $unit { $($tensor: next()),+ }
            }
        }

        impl<'a> $unit<&'a mut [f32]> {
            pub fn of_mut(config: &GptConfig, mut unit: &'a mut [f32]) -> Self {
                let mut sizes = $table(config).into_iter().map(|(_, shape, _)| shape.iter().product());
                let mut next = || {
                    let size = sizes.next().expect("the table names every tensor of the view");
                    unit.split_off_mut(..size).expect("the unit is as long as its table says")
                };
                $unit { $($tensor: next()),+ }
            }
        }
    };
}

unit_view! {
    /// `token` `[vocab, hidden]`, `position` `[sequence, hidden]`.
    Embedding from embedding: token, position
}
unit_view! {
    /// One decoder block, in the order of its arithmetic.
    Block from block: norm1_gain, norm1_bias, qkv_weight, qkv_bias, projection_weight, projection_bias,
        norm2_gain, norm2_bias, up_weight, up_bias, down_weight, down_bias
}
unit_view! {
    /// The final norm and the matrix to the vocabulary.
    Head from head: norm_gain, norm_bias, weight
}

type Entry = (&'static str, Vec<usize>, Initial);

/// Standard deviation of initial weights, as in GPT-2.
const SPREAD: Initial = Initial::Normal { deviation: 0.02 };

fn embedding(config: &GptConfig) -> [Entry; 2] {
    let GptConfig { vocab, hidden, sequence, .. } = *config;
    [("token", vec![vocab, hidden], SPREAD), ("position", vec![sequence, hidden], SPREAD)]
}

fn block(config: &GptConfig) -> [Entry; 12] {
    let c = config.hidden;
    // Two of these are added to the residual stream in every layer: smaller, so that its spread does not grow.
    let onto_residual = Initial::Normal { deviation: 0.02 / (2.0 * config.layers as f32).sqrt() };
    [
        ("norm1.gain", vec![c], Initial::One),
        ("norm1.bias", vec![c], Initial::Zero),
        ("qkv.weight", vec![c, 3 * c], SPREAD),
        ("qkv.bias", vec![3 * c], Initial::Zero),
        ("projection.weight", vec![c, c], onto_residual),
        ("projection.bias", vec![c], Initial::Zero),
        ("norm2.gain", vec![c], Initial::One),
        ("norm2.bias", vec![c], Initial::Zero),
        ("up.weight", vec![c, 4 * c], SPREAD),
        ("up.bias", vec![4 * c], Initial::Zero),
        ("down.weight", vec![4 * c, c], onto_residual),
        ("down.bias", vec![c], Initial::Zero),
    ]
}

fn head(config: &GptConfig) -> [Entry; 3] {
    let GptConfig { vocab, hidden, .. } = *config;
    [
        ("norm.gain", vec![hidden], Initial::One),
        ("norm.bias", vec![hidden], Initial::Zero),
        ("weight", vec![hidden, vocab], SPREAD),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_tensors_tile_the_buffer_and_stages_hold_their_part() {
        let config = GptConfig { layers: 3, hidden: 8, heads: 2, vocab: 16, sequence: 4 };
        let whole = Layout::new(&config, &(0..3));
        let mut end = 0;
        for tensor in &whole.tensors {
            assert_eq!((tensor.range.start, tensor.range.len()), (end, tensor.shape.iter().product()));
            end = tensor.range.end;
        }
        assert_eq!(end, 16 * 8 + 4 * 8 + 3 * (12 * 64 + 13 * 8) + 2 * 8 + 8 * 16);
        assert_eq!(whole.len(), end);
        let names =
            |layers| Layout::new(&config, &layers).units.into_iter().map(|u| u.name).collect::<Vec<_>>();
        assert_eq!(names(0..1), ["embedding", "layer.0"]);
        assert_eq!(names(1..3), ["layer.1", "layer.2", "head"]);
    }
}
