//! Published models: what their configurations say gives their published counts, to the last parameter.

use std::fs;

use narrows_planner::model::{self, Biases, Model, ModelKind};

/// A model trained on sequences of 1024 tokens, its architecture out of a `config.json`.
fn published(config: &str) -> Model {
    let folder = tempfile::tempdir().expect("a folder");
    let toml = "[model]\nhuggingface = \"config.json\"\nsequence = 1024\n\n[train]\nglobal_batch = 8\n";
    fs::write(folder.path().join("config.json"), config).expect("a file");
    fs::write(folder.path().join("model.toml"), toml).expect("a file");
    model::read(&folder.path().join("model.toml")).unwrap_or_else(|e| panic!("{e}"))
}

/// hidden, layers, heads.
fn gpt2([hidden, layers, heads]: [u32; 3]) -> Model {
    published(&format!(
        r#"{{ "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
             "n_embd": {hidden}, "n_layer": {layers}, "n_head": {heads} }}"#
    ))
}

/// hidden, MLP, layers, heads, heads of keys and values, vocabulary; `more` is further keys.
fn llama_like(kind: &str, [hidden, mlp, layers, heads, kv, vocab]: [u32; 6], more: &str) -> Model {
    published(&format!(
        r#"{{ "model_type": "{kind}", "hidden_size": {hidden}, "intermediate_size": {mlp},
             "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {kv},
             "vocab_size": {vocab}, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_cache": true{more} }}"#
    ))
}

const TIED: &str = ", \"tie_word_embeddings\": true";
const UNTIED: &str = ", \"tie_word_embeddings\": false";

/// Counts as the models' pages give them (total of the tensors in safetensors; GPT-2: OpenAI's corrected sizes).
#[test]
fn published_configurations_have_their_published_parameters() {
    let head_128 = format!("{UNTIED}, \"head_dim\": 128, \"attention_bias\": false");
    #[rustfmt::skip]
    let rows = [
        ("GPT-2",        gpt2([768, 12, 12]),                                                    124_439_808),
        ("GPT-2 medium", gpt2([1024, 24, 16]),                                                   354_823_168),
        ("GPT-2 large",  gpt2([1280, 36, 20]),                                                   774_030_080),
        ("GPT-2 XL",     gpt2([1600, 48, 25]),                                                 1_557_611_200),
        ("Llama-2 7B",   llama_like("llama",   [4096, 11008, 32, 32, 32,  32_000], UNTIED),    6_738_415_616),
        ("Llama-2 13B",  llama_like("llama",   [5120, 13824, 40, 40, 40,  32_000], UNTIED),   13_015_864_320),
        ("Llama-2 70B",  llama_like("llama",   [8192, 28672, 80, 64,  8,  32_000], UNTIED),   68_976_648_192),
        ("Llama-3 8B",   llama_like("llama",   [4096, 14336, 32, 32,  8, 128_256], UNTIED),    8_030_261_248),
        ("Llama-3 70B",  llama_like("llama",   [8192, 28672, 80, 64,  8, 128_256], UNTIED),   70_553_706_496),
        ("Mistral 7B",   llama_like("mistral", [4096, 14336, 32, 32,  8,  32_000], UNTIED),    7_241_732_096),
        ("Qwen2.5 0.5B", llama_like("qwen2",   [ 896,  4864, 24, 14,  2, 151_936], TIED),        494_032_768),
        ("Qwen2.5 7B",   llama_like("qwen2",   [3584, 18944, 28, 28,  4, 152_064], UNTIED),    7_615_616_512),
        ("Qwen2.5 72B",  llama_like("qwen2",   [8192, 29568, 80, 64,  8, 152_064], UNTIED),   72_706_203_648),
        ("Qwen3 8B",     llama_like("qwen3",   [4096, 12288, 36, 32,  8, 151_936], &head_128), 8_190_735_360),
        ("Mistral Nemo", llama_like("mistral", [5120, 14336, 40, 32,  8, 131_072], &head_128), 12_247_782_400),
    ];
    for (name, model, parameters) in rows {
        assert_eq!(model.parameters(), parameters, "{name}");
    }
}

#[test]
fn what_a_configuration_leaves_out_is_as_in_transformers() {
    let bare = r#"{ "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "head_dim": null,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32 }"#;
    let llama = published(bare);
    assert_eq!((llama.kind, llama.kv_heads(), llama.head_dim()), (ModelKind::Llama, 32, 128));
    assert!(!llama.tied_embeddings && llama.biases() == Biases::None);
    let biased = published(&bare.replace("null", "128, \"attention_bias\": true, \"mlp_bias\": true"));
    assert_eq!(biased.biases(), Biases::All);
    let small = gpt2([768, 12, 12]);
    assert!(small.tied_embeddings && small.biases() == Biases::All);
    assert_eq!((small.mlp_width(), small.positions, small.sequence), (3072, Some(1024), 1024));
}

#[test]
fn a_position_table_is_counted_whole_whatever_is_trained_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let toml = "[model]\nhuggingface = \"c.json\"\nsequence = 64\n\n[train]\nglobal_batch = 8\n";
    let config = r#"{ "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
        "n_head": 12 }"#;
    fs::write(folder.path().join("c.json"), config).expect("a file");
    fs::write(folder.path().join("model.toml"), toml).expect("a file");
    let model = model::read(&folder.path().join("model.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((model.sequence, model.parameters()), (64, 124_439_808));
}
