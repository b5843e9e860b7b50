//! Where each tensor lies in the flat buffers.

use std::ops::Range;

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
