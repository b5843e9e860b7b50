//! Parameters of a model, and the FLOPs and widths that follow from its matrices.
//!
//! ```text
//!   layer      matrices  h a + 2 h k + a h + n h f        a heads x head_dim, k kv_heads x head_dim, f MLP width,
//!              biases    qkv a + 2 k; output h; MLP f (n-1) + h          n 2, gated 3
//!              norms     gpt 2 x 2 h, llama 2 x h; qk_norm 2 head_dim
//!   embedding  V h, gpt + positions x h
//!   head       norm (gpt 2 h, llama h) + V h              the V h once in the model where tied
//! ```
//! So a layer of GPT-2 has 12 h^2 + 13 h, one of the first Llama 4 h^2 + 3 h f + 2 h. Sources: Radford et al. 2019
//! (GPT-2); Touvron et al., arXiv 2302.13971 (Llama); Ainslie et al., arXiv 2305.13245 (grouped queries); the models'
//! published configurations, whose published counts the tests hold to the last digit.
//!
//! FLOPs per token forward, a multiply-add counting 2: 2 for each parameter of a matrix; attention 4 s a (scores and
//! mixture, counted whole, not its causal half, grouped queries or not); head 2 h V.
//!
//! Limits: a sliding window (Mistral) is not: attention is counted over the whole sequence. Rotary tables are no
//! parameters.

use std::ops::Range;

use super::{Biases, Model, ModelKind};

impl Model {
    /// Parameters of the whole model, as published: a tied table counts once.
    pub fn parameters(&self) -> u64 {
        self.stage_parameters(0..self.layers)
    }

    /// Parameters that the holder of `layers` keeps: the embedding with layer 0, the head with the last. Where both
    /// ends are in different hands, each keeps a copy of a tied table.
    pub fn stage_parameters(&self, layers: Range<u32>) -> u64 {
        let (first, last) = (layers.start == 0, layers.end == self.layers);
        let embedding = if first { self.embedding_parameters() } else { 0 };
        let head = if last { self.head_parameters() } else { 0 };
        let twice = if first && last && self.tied_embeddings { self.table() } else { 0 };
        u64::from(layers.end - layers.start) * self.layer_parameters() + embedding + head - twice
    }

    /// Parameters of one layer.
    pub fn layer_parameters(&self) -> u64 {
        self.layer_matrix_parameters() + self.layer_bias_parameters() + self.layer_norm_parameters()
    }

    /// Parameters of one layer's matrices: of queries, keys, values, output and MLP.
    pub fn layer_matrix_parameters(&self) -> u64 {
        let h = u64::from(self.hidden);
        h * (2 * self.attention_width() + 2 * self.kv_width() + self.mlp_matrices() * self.mlp_width())
    }

    /// Parameters of the embedding, which layer 0 carries: the table of tokens, and gpt's of positions.
    pub fn embedding_parameters(&self) -> u64 {
        let positions = match self.kind {
            ModelKind::Gpt => u64::from(self.positions.unwrap_or(self.sequence)),
            ModelKind::Llama => 0,
        };
        self.table() + positions * u64::from(self.hidden)
    }

    /// Parameters of the final norm and the head, which the last layer carries; where tied, its copy of the table.
    pub fn head_parameters(&self) -> u64 {
        self.norm_parameters() + self.table()
    }

    /// FLOPs of one layer's matrices forward, per token.
    pub fn layer_linear_flops_per_token(&self) -> f64 {
        2.0 * self.layer_matrix_parameters() as f64
    }

    /// FLOPs of one layer's attention scores and mixture forward, per token.
    pub fn layer_attention_flops_per_token(&self) -> f64 {
        4.0 * f64::from(self.sequence) * self.attention_width() as f64
    }

    /// FLOPs of the head forward, per token.
    pub fn head_flops_per_token(&self) -> f64 {
        2.0 * self.table() as f64
    }

    /// Width of a head.
    pub fn head_dim(&self) -> u64 {
        u64::from(self.head_dim.unwrap_or(self.hidden / self.heads))
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> u32 {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Width of all queries of a token, and of attention's output before its matrix.
    pub fn attention_width(&self) -> u64 {
        u64::from(self.heads) * self.head_dim()
    }

    /// Width of all keys of a token, and of all values.
    pub fn kv_width(&self) -> u64 {
        u64::from(self.kv_heads()) * self.head_dim()
    }

    /// Inner width of the MLP.
    pub fn mlp_width(&self) -> u64 {
        let h = u64::from(self.hidden);
        match (self.mlp_width, self.kind) {
            (Some(width), _) => u64::from(width),
            (None, ModelKind::Gpt) => 4 * h,
            (None, ModelKind::Llama) => (8 * h / 3).next_multiple_of(256),
        }
    }

    /// Whether the MLP has a gate: three matrices instead of two, and two inner activations.
    pub fn gated_mlp(&self) -> bool {
        self.kind == ModelKind::Llama
    }

    /// Which of a layer's matrices have a bias.
    pub fn biases(&self) -> Biases {
        self.biases.unwrap_or(match self.kind {
            ModelKind::Gpt => Biases::All,
            ModelKind::Llama => Biases::None,
        })
    }

    /// Whether the layers are GPT-2's in all: every width, head and bias as its kind has them, nothing tied.
    pub fn is_plain_gpt(&self) -> bool {
        self.kind == ModelKind::Gpt
            && self.kv_heads() == self.heads
            && self.attention_width() == u64::from(self.hidden)
            && self.mlp_width() == 4 * u64::from(self.hidden)
            && self.positions.is_none_or(|positions| positions == self.sequence)
            && self.biases() == Biases::All
            && !self.tied_embeddings
            && !self.qk_norm
    }

    fn layer_bias_parameters(&self) -> u64 {
        let (h, qkv) = (u64::from(self.hidden), self.attention_width() + 2 * self.kv_width());
        match self.biases() {
            Biases::None => 0,
            Biases::Qkv => qkv,
            Biases::Attention => qkv + h,
            Biases::All => qkv + h + (self.mlp_matrices() - 1) * self.mlp_width() + h,
        }
    }

    fn layer_norm_parameters(&self) -> u64 {
        2 * self.norm_parameters() + if self.qk_norm { 2 * self.head_dim() } else { 0 }
    }

    /// Of one norm: weight, and gpt's bias.
    fn norm_parameters(&self) -> u64 {
        let vectors = match self.kind {
            ModelKind::Gpt => 2,
            ModelKind::Llama => 1,
        };
        vectors * u64::from(self.hidden)
    }

    fn mlp_matrices(&self) -> u64 {
        if self.gated_mlp() { 3 } else { 2 }
    }

    /// A vector for each word.
    fn table(&self) -> u64 {
        u64::from(self.vocab) * u64::from(self.hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::fixture::gpt;

    #[test]
    fn a_gpt_layer_is_the_sum_of_its_tensors() {
        let (h, model) = (96, gpt(1, 96));
        let tensors =
            2 * h + (3 * h * h + 3 * h) + (h * h + h) + 2 * h + (4 * h * h + 4 * h) + (4 * h * h + h);
        assert_eq!(model.layer_parameters(), tensors);
        assert_eq!(model.embedding_parameters(), 256 * h + 128 * h);
        assert_eq!(model.head_parameters(), 2 * h + h * 256);
        assert_eq!(model.layer_linear_flops_per_token(), (24 * h * h) as f64);
        assert_eq!(model.layer_attention_flops_per_token(), (4 * 128 * h) as f64);
    }

    #[test]
    fn a_tied_table_counts_once_in_the_model_and_once_at_each_end_of_a_pipeline() {
        let (untied, tied) = (gpt(4, 96), Model { tied_embeddings: true, ..gpt(4, 96) });
        assert_eq!(untied.parameters() - tied.parameters(), 256 * 96);
        let halves = |m: &Model| m.stage_parameters(0..2) + m.stage_parameters(2..4);
        assert_eq!(halves(&tied), halves(&untied));
        assert_eq!(halves(&tied), tied.parameters() + 256 * 96);
    }

    #[test]
    fn grouped_queries_shrink_keys_and_values_alone() {
        let (h, model) = (64, Model { kind: ModelKind::Llama, kv_heads: Some(1), ..gpt(1, 64) });
        assert_eq!((model.attention_width(), model.kv_width(), model.mlp_width()), (64, 16, 256));
        assert_eq!(model.layer_matrix_parameters(), h * h + 2 * h * 16 + h * h + 3 * h * 256);
        assert_eq!(model.layer_attention_flops_per_token(), gpt(1, 64).layer_attention_flops_per_token());
    }

    #[test]
    fn each_kind_of_bias_has_the_width_of_its_matrices() {
        let biases = |biases| {
            let model =
                Model { kind: ModelKind::Llama, kv_heads: Some(2), biases: Some(biases), ..gpt(1, 64) };
            model.layer_bias_parameters()
        };
        assert_eq!(biases(Biases::None), 0);
        assert_eq!(biases(Biases::Qkv), 64 + 32 + 32);
        assert_eq!(biases(Biases::Attention), 64 + 32 + 32 + 64);
        assert_eq!(biases(Biases::All), 64 + 32 + 32 + 64 + 256 + 256 + 64);
    }

    #[test]
    fn only_gpt_2_as_it_was_is_plain() {
        let plain = gpt(4, 64);
        let bent = [
            Model { kind: ModelKind::Llama, ..plain.clone() },
            Model { kv_heads: Some(2), ..plain.clone() },
            Model { head_dim: Some(32), ..plain.clone() },
            Model { mlp_width: Some(128), ..plain.clone() },
            Model { positions: Some(256), ..plain.clone() },
            Model { biases: Some(Biases::None), ..plain.clone() },
            Model { tied_embeddings: true, ..plain.clone() },
            Model { qk_norm: true, ..plain.clone() },
        ];
        assert!(plain.is_plain_gpt());
        assert!(Model { head_dim: Some(16), mlp_width: Some(256), ..plain.clone() }.is_plain_gpt());
        assert!(bent.iter().all(|model| !model.is_plain_gpt()));
    }
}
