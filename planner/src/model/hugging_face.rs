//! A published model's `config.json` (Hugging Face transformers) as the architecture of `[model]`:
//!
//! ```text
//!   model_type   kind    what differs from the kind's defaults
//!   gpt2         gpt     tied (unless it says not), n_positions rows of positions, n_inner
//!   llama        llama   grouped queries, intermediate_size, head_dim; attention_bias, mlp_bias
//!   mistral      llama   the same, no biases
//!   qwen2        llama   the same, biases of queries, keys and values
//!   qwen3        llama   the same, head_dim, normed queries and keys; attention_bias
//! ```
//! Of the many keys only those that change shapes are read; the rest is how the model is run. What a missing key means
//! is transformers' own default (biases no, gpt2 tied, others untied); where that is a number, the key is asked for.
//!
//! Limits: `sliding_window` does not shorten attention. Mixtures of experts, encoder-decoders, heads other than that
//! of a language model and every other `model_type` are refused by name.
//!
//! Not here: training settings and the sequence trained on: such a file has none.

use std::path::Path;

use serde::Deserialize;

use super::file::Architecture;
use super::{Biases, ModelKind};
use crate::input::{Document, Fault, InputError, listed};

/// Families known: `model_type` and the architecture that is a language model.
const FAMILIES: &[(&str, &str, Family)] = &[
    ("gpt2", "GPT2LMHeadModel", Family::Gpt2),
    ("llama", "LlamaForCausalLM", Family::Llama),
    ("mistral", "MistralForCausalLM", Family::Mistral),
    ("qwen2", "Qwen2ForCausalLM", Family::Qwen2),
    ("qwen3", "Qwen3ForCausalLM", Family::Qwen3),
];

/// Keys that only mixtures of experts have, by the beginnings of their names.
const OF_EXPERTS: &[&str] = &["num_local_experts", "num_experts", "n_routed_experts", "moe_"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Gpt2,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// A configuration of a family known here.
#[derive(Debug)]
pub(super) struct Config {
    document: Document,
    family: Family,
}

/// What every configuration says of itself.
#[derive(Debug, Deserialize)]
struct Declared {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    is_encoder_decoder: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Gpt2Keys {
    n_layer: u32,
    n_embd: u32,
    n_head: u32,
    n_inner: Option<u32>,
    n_positions: u32,
    vocab_size: u32,
    tie_word_embeddings: Option<bool>,
    add_cross_attention: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct LlamaKeys {
    num_hidden_layers: u32,
    hidden_size: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    vocab_size: u32,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
}

/// Why a configuration alone is not enough.
pub(super) fn bare(path: &Path) -> InputError {
    let config = match Config::read(path).and_then(|config| config.architecture(1).map(|_| config)) {
        Ok(config) => config,
        Err(error) => return error,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hint = format!(
        "name it in a model.toml: `model = {{ huggingface = \"{name}\", sequence = 4096 }}` and `train = {{ global_batch \
         = 512 }}`"
    );
    config.document.error(Fault::here("the file says what the model is, not how it is trained").hint(hint))
}

impl Config {
    /// Reads a configuration.
    pub(super) fn read(path: &Path) -> Result<Self, InputError> {
        let document = Document::json(path)?;
        let declared: Declared = document.decode()?;
        match family(&document, &declared) {
            Ok(family) => Ok(Config { document, family }),
            Err(fault) => Err(document.error(fault)),
        }
    }

    /// Its architecture, trained on sequences of `sequence` tokens.
    pub(super) fn architecture(&self, sequence: u32) -> Result<Architecture, InputError> {
        let architecture = match self.family {
            Family::Gpt2 => self.document.decode::<Gpt2Keys>()?.architecture(sequence),
            family => self.document.decode::<LlamaKeys>()?.architecture(family, sequence),
        };
        architecture.map_err(|fault| self.document.error(fault))
    }

    /// A fault of the architecture's key, shown at the configuration's.
    pub(super) fn error(&self, key: &str, fault: Fault) -> InputError {
        self.document.error(fault.of([self.name_of(key)]))
    }

    fn name_of<'a>(&self, key: &'a str) -> &'a str {
        match (key, self.family) {
            ("layers", Family::Gpt2) => "n_layer",
            ("hidden", Family::Gpt2) => "n_embd",
            ("heads", Family::Gpt2) => "n_head",
            ("mlp_width", Family::Gpt2) => "n_inner",
            ("positions", _) => "n_positions",
            ("layers", _) => "num_hidden_layers",
            ("hidden", _) => "hidden_size",
            ("heads", _) => "num_attention_heads",
            ("kv_heads", _) => "num_key_value_heads",
            ("mlp_width", _) => "intermediate_size",
            ("vocab", _) => "vocab_size",
            (same, _) => same,
        }
    }
}

fn family(document: &Document, declared: &Declared) -> Result<Family, Fault> {
    let architectures = declared.architectures.as_deref().unwrap_or_default();
    let by_architecture = FAMILIES.iter().find(|(_, name, _)| architectures.iter().any(|a| a == name));
    let Some(name) = declared.model_type.as_deref().or(by_architecture.map(|(name, ..)| *name)) else {
        let what = "neither `model_type` nor `architectures` says what this model is";
        return Err(Fault::here(what).hint("a published model's config.json has both"));
    };
    let refused = |why: &str| Fault::at(["model_type"], format!("`{name}` cannot be planned: {why}"));
    if declared.is_encoder_decoder == Some(true) {
        return Err(refused("it is an encoder-decoder").hint(known()));
    }
    if OF_EXPERTS.iter().any(|key| document.has([*key])) {
        return Err(refused("it is a mixture of experts").hint(known()));
    }
    let Some((_, language_model, family)) = FAMILIES.iter().find(|(known, ..)| *known == name) else {
        return Err(refused("its layers are not known here").hint(known()));
    };
    match architectures.first() {
        Some(other) if by_architecture.is_none() => {
            let what = format!("`{other}` cannot be planned: it has another head than a language model's");
            Err(Fault::at(["architectures"], what).hint(format!("known here: `{language_model}`")))
        }
        _ => Ok(*family),
    }
}

fn known() -> String {
    format!("known here: {}", listed(&FAMILIES.iter().map(|(name, ..)| *name).collect::<Vec<_>>()))
}

impl Gpt2Keys {
    fn architecture(self, sequence: u32) -> Result<Architecture, Fault> {
        if self.add_cross_attention == Some(true) {
            let what = "`gpt2` with cross attention cannot be planned: it is half of an encoder-decoder";
            return Err(Fault::at(["add_cross_attention"], what));
        }
        Ok(Architecture {
            kind: ModelKind::Gpt,
            layers: self.n_layer,
            hidden: self.n_embd,
            heads: self.n_head,
            kv_heads: None,
            head_dim: None,
            mlp_width: self.n_inner,
            tied_embeddings: self.tie_word_embeddings.unwrap_or(true),
            biases: None,
            qk_norm: false,
            positions: Some(self.n_positions),
            vocab: self.vocab_size,
            sequence,
        })
    }
}

impl LlamaKeys {
    fn architecture(self, family: Family, sequence: u32) -> Result<Architecture, Fault> {
        // Llama's missing number means "as many as heads", the others' a number of their first release.
        if family != Family::Llama && self.num_key_value_heads.is_none() {
            return Err(missing("num_key_value_heads"));
        }
        if family == Family::Qwen3 && self.head_dim.is_none() {
            return Err(missing("head_dim"));
        }
        Ok(Architecture {
            kind: ModelKind::Llama,
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            mlp_width: Some(self.intermediate_size),
            tied_embeddings: self.tie_word_embeddings.unwrap_or(false),
            biases: self.biases(family)?,
            qk_norm: family == Family::Qwen3,
            positions: None,
            vocab: self.vocab_size,
            sequence,
        })
    }

    fn biases(&self, family: Family) -> Result<Option<Biases>, Fault> {
        let said = |key: Option<bool>| key.unwrap_or(false);
        match (family, said(self.attention_bias), said(self.mlp_bias)) {
            (Family::Qwen2, ..) => Ok(Some(Biases::Qkv)),
            (Family::Llama, true, true) => Ok(Some(Biases::All)),
            (Family::Llama, false, true) => {
                Err(Fault::at(["mlp_bias"], "biases of the MLP alone cannot be planned")
                    .hint("`attention_bias` may be true without `mlp_bias`, not the other way round"))
            }
            (Family::Llama | Family::Qwen3, true, _) => Ok(Some(Biases::Attention)),
            _ => Ok(None),
        }
    }
}

fn missing(key: &str) -> Fault {
    Fault::here(format!("missing key `{key}`")).label(format!("`{key}` is missing in this table"))
}
