//! Published configurations that cannot be planned: each row changes one thing of a good `config.json` (or of the
//! `model.toml` that names it), and says what must be reported and in which file.

use std::fs;
use std::path::Path;

use narrows_planner::input::InputError;
use narrows_planner::model::{self, Model};

const MODEL: &str = "[model]\nhuggingface = \"config.json\"\nsequence = 1024\n\n[train]\nglobal_batch = 8\n";

const LLAMA: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "attention_bias": false,
  "torch_dtype": "bfloat16",
  "vocab_size": 128256
}
"#;

const GPT2: &str = r#"{
  "model_type": "gpt2",
  "n_embd": 768,
  "n_layer": 12,
  "n_head": 12,
  "n_positions": 1024,
  "vocab_size": 50257
}
"#;

fn read(folder: &Path, model: &str, config: &[u8]) -> Result<Model, InputError> {
    fs::write(folder.join("config.json"), config).expect("a file");
    fs::write(folder.join("model.toml"), model).expect("a file");
    model::read(&folder.join("model.toml"))
}

/// `file:line:column what; hint`.
fn told(error: &InputError) -> String {
    let file = error.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (line, column) = error.line_and_column().unwrap_or_default();
    let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{file}:{line}:{column} {}{hint}", error.message())
}

/// Rows of (from, to, what must be told).
fn check(config: &str, rows: &[(&str, &str, &str)]) {
    let folder = tempfile::tempdir().expect("a folder");
    read(folder.path(), MODEL, config.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
    let mut wrong = Vec::new();
    for (from, to, expected) in rows {
        let found = MODEL.matches(from).count() + config.matches(from).count();
        assert_eq!(found, 1, "{from:?} must stand once");
        let (model, config) = (MODEL.replace(from, to), config.replace(from, to));
        let read = read(folder.path(), &model, config.as_bytes());
        let told = read.map_or_else(|error| told(&error), |_| "nothing".into());
        let told = told.replace(&*folder.path().to_string_lossy(), "FOLDER");
        if told != *expected {
            wrong.push(format!("{from:?} -> {to:?}\n    told     {told}\n    expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_configuration_that_cannot_be_planned_says_why() {
    #[rustfmt::skip]
    check(LLAMA, &[
        (r#""llama""#, r#""mixtral""#,
            "config.json:3:17 `mixtral` cannot be planned: its layers are not known here; known here: `gpt2`, `llama`, `mistral`, `qwen2` and `qwen3`"),
        (r#""llama""#, "7",
            "config.json:3:17 model_type: expected a text, found `7`"),
        (r#""torch_dtype": "bfloat16""#, r#""num_local_experts": 8"#,
            "config.json:3:17 `llama` cannot be planned: it is a mixture of experts; known here: `gpt2`, `llama`, `mistral`, `qwen2` and `qwen3`"),
        (r#""torch_dtype": "bfloat16""#, r#""is_encoder_decoder": true"#,
            "config.json:3:17 `llama` cannot be planned: it is an encoder-decoder; known here: `gpt2`, `llama`, `mistral`, `qwen2` and `qwen3`"),
        (r#""LlamaForCausalLM""#, r#""LlamaForSequenceClassification""#,
            "config.json:2:20 `LlamaForSequenceClassification` cannot be planned: it has another head than a language model's; known here: `LlamaForCausalLM`"),
        ("\"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n", "",
            "config.json:1:1 neither `model_type` nor `architectures` says what this model is; a published model's config.json has both"),
        ("  \"hidden_size\": 4096,\n", "",
            "config.json:1:1 missing key `hidden_size`"),
        (r#""hidden_size": 4096"#, r#""hidden_size": null"#,
            "config.json:4:18 hidden_size: expected a whole number from 0 to 4294967295, found nothing"),
        (r#""hidden_size": 4096"#, r#""hidden_size": 4100"#,
            "config.json:7:26 32 heads do not divide the hidden width 4100; 25 would divide 4100"),
        (r#""hidden_size": 4096"#, r#""hidden_size": 99999999999999999999"#,
            "config.json:4:18 hidden_size: expected a whole number from 0 to 4294967295, found `1e20`"),
        (r#""num_key_value_heads": 8"#, r#""num_key_value_heads": 7"#,
            "config.json:8:26 7 heads of keys and values do not divide the 32 heads of queries; 8 would divide 32"),
        (r#""num_key_value_heads": 8"#, r#""num_key_value_heads": 0"#,
            "config.json:8:26 `kv_heads` is 0, expected 1 to 1048576"),
        (r#""intermediate_size": 14336"#, r#""intermediate_size": 0"#,
            "config.json:5:24 `mlp_width` is 0, expected 1 to 4194304"),
        (r#""num_hidden_layers": 32"#, r#""num_hidden_layers": "32""#,
            r#"config.json:6:24 num_hidden_layers: expected a whole number from 0 to 4294967295, found the text "32""#),
        (r#""attention_bias": false"#, r#""mlp_bias": true"#,
            "config.json:9:15 biases of the MLP alone cannot be planned; `attention_bias` may be true without `mlp_bias`, not the other way round"),
        (r#""vocab_size": 128256"#, r#""vocab_size": 128256, "vocab_size": 1"#,
            "config.json:11:25 not JSON: the key `vocab_size` stands twice in one object"),
        ("\"vocab_size\": 128256\n}\n", "\"vocab_size\": 128256\n",
            "config.json:12:1 not JSON: expected `,` or `}`, but the file ends inside the `{` of line 1; the file seems to be cut off: write it again"),
        ("config.json", "config.jsn",
            "config.jsn:0:0 cannot read FOLDER/config.jsn: No such file or directory (os error 2)"),
        ("sequence = 1024", "sequence = 1024\nlayers = 32",
            "model.toml:4:1 model: unknown key `layers`; known here: `huggingface` and `sequence`"),
        ("sequence = 1024\n", "",
            "model.toml:1:1 model: missing key `sequence`"),
        ("sequence = 1024", "sequence = 0",
            "model.toml:3:12 `sequence` is 0, expected 1 to 16777216"),
        ("global_batch = 8", "global_batch = 0",
            "model.toml:6:16 `global_batch` is 0, expected 1 to 16777216"),
        ("\"config.json\"", "true",
            "model.toml:2:15 model.huggingface: expected a text, found `true`"),
    ]);
}

#[test]
fn gpt2_has_its_own_keys_and_its_table_of_positions() {
    #[rustfmt::skip]
    check(GPT2, &[
        ("sequence = 1024", "sequence = 2048",
            "model.toml:3:12 a sequence of 2048 tokens is longer than the 1024 positions of the model"),
        (r#""n_head": 12"#, r#""n_head": 11"#,
            "config.json:5:13 11 heads do not divide the hidden width 768; 12 would divide 768"),
        (r#""n_layer": 12"#, r#""n_layer": 0"#,
            "config.json:4:14 `layers` is 0, expected 1 to 65536"),
        (r#""n_layer": 12,"#, r#""add_cross_attention": true, "n_layer": 12,"#,
            "config.json:4:26 `gpt2` with cross attention cannot be planned: it is half of an encoder-decoder"),
        (r#""gpt2""#, r#""qwen2""#,
            "config.json:1:1 missing key `num_hidden_layers`"),
    ]);
}

#[test]
fn what_other_families_leave_to_a_default_is_asked_for() {
    let qwen3 = LLAMA.replace("LlamaForCausalLM", "Qwen3ForCausalLM").replace("\"llama\"", "\"qwen3\"");
    let folder = tempfile::tempdir().expect("a folder");
    let says =
        |config: &str| read(folder.path(), MODEL, config.as_bytes()).expect_err("no config").to_string();
    assert!(says(&qwen3).contains("missing key `head_dim`"));
    assert!(
        says(&qwen3.replace("  \"num_key_value_heads\": 8,\n", ""))
            .contains("missing key `num_key_value_heads`")
    );
}

#[test]
fn a_configuration_alone_says_how_to_give_the_rest() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    fs::write(&path, LLAMA).expect("a file");
    let error = model::read(&path).expect_err("no training settings");
    assert_eq!(error.message(), "the file says what the model is, not how it is trained");
    // The hint is a model.toml that works.
    let hint = error.hint().expect("the way out");
    let lines: Vec<&str> = hint.split('`').filter(|part| part.contains(" = {")).collect();
    fs::write(folder.path().join("model.toml"), lines.join("\n")).expect("a file");
    let model = model::read(&folder.path().join("model.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(model.parameters(), 8_030_261_248);
    // One that could not be planned in any case says that first.
    fs::write(&path, LLAMA.replace("llama", "t5")).expect("a file");
    assert!(model::read(&path).expect_err("t5").message().contains("`t5` cannot be planned"));
}

#[test]
fn a_configuration_that_is_no_text_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = read(folder.path(), MODEL, b"{ \"model_type\": \"\xff\" }").expect_err("not UTF-8");
    assert_eq!(told(&error), "config.json:1:18 the file is not UTF-8 text");
}
