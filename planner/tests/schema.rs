//! The schema of `plan.json` against plans: what the reader takes, the schema takes; what is misspelt, both refuse.
//!
//! The validator here knows the keywords that the schema uses and no others: one that it does not know fails the test.

use serde_json::{Value, json};

use narrows_planner::{plan, schema};

/// Why `value` is not what `schema` says, with the path to it.
fn refused(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let Value::Object(keywords) = schema else {
        return (schema == &json!(false)).then(|| format!("{at}: nothing may stand here"));
    };
    keywords.iter().find_map(|(keyword, says)| keyword_refuses(root, keywords, keyword, says, value, at))
}

fn keyword_refuses(
    root: &Value,
    beside: &serde_json::Map<String, Value>,
    keyword: &str,
    says: &Value,
    value: &Value,
    at: &str,
) -> Option<String> {
    let holds = |schema: &Value| refused(root, schema, value, at).is_none();
    let say = |fine: bool| (!fine).then(|| format!("{at}: {keyword} {says} refuses {value}"));
    let list = || says.as_array().expect("a list of schemas");
    let entries = || value.as_object().into_iter().flatten();
    match keyword {
        "$schema" | "$defs" | "title" | "description" | "default" | "format" | "if" => None,
        "$ref" => {
            let pointer = says.as_str().and_then(|s| s.strip_prefix('#')).expect("a local reference");
            refused(root, root.pointer(pointer).expect("what is referred to"), value, at)
        }
        "type" => say(says
            .as_array()
            .map_or(std::slice::from_ref(says), Vec::as_slice)
            .iter()
            .any(|t| is(value, t))),
        "const" => say(says == value),
        "enum" => say(list().contains(value)),
        "minimum" => say(value.as_f64().is_none_or(|n| n >= says.as_f64().expect("a number"))),
        "minItems" => {
            say(value.as_array().is_none_or(|items| items.len() as u64 >= says.as_u64().expect("a count")))
        }
        "maxItems" => {
            say(value.as_array().is_none_or(|items| items.len() as u64 <= says.as_u64().expect("a count")))
        }
        "required" => list().iter().find_map(|key| {
            let missing = value.as_object().is_some_and(|o| !o.contains_key(key.as_str().expect("a key")));
            missing.then(|| format!("{at}: {key} is missing"))
        }),
        "properties" => {
            entries().find_map(|(key, value)| refused(root, says.get(key)?, value, &format!("{at}.{key}")))
        }
        "additionalProperties" => entries()
            .filter(|(key, _)| beside.get("properties").and_then(|p| p.get(key)).is_none())
            .find_map(|(key, value)| refused(root, says, value, &format!("{at}.{key}"))),
        "items" => value
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .find_map(|(i, item)| refused(root, says, item, &format!("{at}[{i}]"))),
        "anyOf" => say(list().iter().any(holds)),
        "oneOf" => say(list().iter().filter(|schema| holds(schema)).count() == 1),
        "allOf" => list().iter().find_map(|schema| refused(root, schema, value, at)),
        "then" => holds(&beside["if"]).then(|| refused(root, says, value, at)).flatten(),
        "else" => (!holds(&beside["if"])).then(|| refused(root, says, value, at)).flatten(),
        unknown => panic!("the schema uses `{unknown}`, which this test does not know"),
    }
}

fn is(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}

fn check(plan: &Value) -> Result<(), String> {
    let schema = schema::plan();
    refused(&schema, &schema, plan, "plan").map_or(Ok(()), Err)
}

const CLUSTER: &str = r#"
[[cluster]]
name = "ib"
nodes = 2
gpus = 2
gpu = { name = "A100-80G", price = "1.79USD/h" }
intra = "nvlink"
nic = { class = "infiniband", rate = "200Gbit/s", count = 2 }
ethernet = "25Gbit/s"

[[cluster]]
name = "lab"
gpus = 1
gpu = "T4"
intra = "pcie3"
nic = { class = "ethernet", rate = "1Gbit/s" }

[[cluster.host]]
name = "anna"
address = "anna.lab"

[[link]]
between = ["ib", "lab"]
rate = "100Mbit/s"
shared = "150Mbit/s"
latency = "20ms"
price = "0.02USD/GB"
"#;

const MODEL: &str = r#"
[model]
kind = "llama"
layers = 6
hidden = 64
heads = 4
kv_heads = 2
mlp_width = 192
biases = "qkv"
qk_norm = true
tied_embeddings = true
vocab = 256
sequence = 32

[train]
global_batch = 24
micro_batch = 2
"#;

/// By hand, with every kind of codec and exchange, a replica of its own microbatch and a stage of two ranks.
fn by_hand() -> Value {
    json!({
        "version": 1, "cluster": "cluster.toml", "model": "model.toml", "micro_batch": 2,
        "schedule": { "kind": "1f1b", "virtual_stages": 1 },
        "replicas": [
            { "microbatches": 8, "stages": [
                { "layers": [0, 4], "ranks": [
                    { "rank": 0, "host": "ib-0", "gpu": 0, "nic": "infiniband" },
                    { "rank": 1, "host": "ib-0", "gpu": 1, "nic": "infiniband" } ] },
                { "layers": [4, 6], "ranks": [ { "rank": 2, "host": "ib-1", "gpu": 1, "nic": "infiniband" } ] } ],
              "boundaries": [ { "codec": { "kind": "subspace", "rank": 8 }, "transport": "tcp" } ] },
            { "microbatches": 4, "micro_batch": 2, "recompute": "full", "stages": [
                { "layers": [0, 6], "ranks": [ { "rank": 3, "host": "anna", "gpu": 0, "nic": "ethernet" } ] } ] }
        ],
        "exchange": [ { "replicas": [0, 1], "kind": "sparse", "top_k": 64, "every": 30 } ]
    })
}

/// The plan as narrows writes it: inventory and model inside, every figure given.
fn written() -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plan.json");
    for (name, text) in
        [("cluster.toml", CLUSTER), ("model.toml", MODEL), ("plan.json", &by_hand().to_string())]
    {
        std::fs::write(folder.path().join(name), text).expect("a file");
    }
    let mut plan = plan::read(&path).unwrap_or_else(|e| panic!("{e}"));
    let peak_memory_bytes = vec![1, 2, 3, 4];
    plan.predicted = Some(plan::Predicted {
        iteration_s: 0.5,
        tokens_per_s: 1536.0,
        model_flops_per_s_per_gpu: 1e12,
        peak_memory_bytes,
    });
    let status = "gap".into();
    plan.solver = Some(plan::Solver { status, objective_s: 0.5, bound_s: 0.5, gap: 0.0, wall_s: 0.1 });
    plan::write(&plan, &path).expect("written");
    assert_eq!(plan::read(&path).unwrap_or_else(|e| panic!("{e}")), plan);
    serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON")
}

#[test]
fn plans_by_hand_and_as_written_are_what_the_schema_says() {
    assert_eq!(check(&by_hand()), Ok(()));
    assert_eq!(check(&written()), Ok(()));
    let mut plan = by_hand();
    for codec in [json!({ "kind": "none" }), json!({ "kind": "bf16" }), json!({ "kind": "int8" })] {
        plan["replicas"][0]["boundaries"][0]["codec"] = codec;
        assert_eq!(check(&plan), Ok(()));
    }
    plan["exchange"][0] = json!({ "replicas": [0, 1], "kind": "dense", "every": 1, "zero1": true });
    assert_eq!(check(&plan), Ok(()));
    plan["exchange"][0] = json!({ "replicas": [0, 1], "kind": "streaming", "every": 10 });
    assert_eq!(check(&plan), Ok(()));
}

#[test]
fn the_schema_is_of_draft_2020_12_and_says_what_each_key_is() {
    let schema = schema::plan();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let objects: Vec<_> = schema["$defs"].as_object().expect("definitions").iter().collect();
    for (name, object) in objects.iter().filter(|(_, object)| object.get("properties").is_some()) {
        for (key, property) in object["properties"].as_object().expect("properties") {
            assert!(property.get("description").is_some(), "{name}.{key} is not described");
        }
    }
}

/// Every table of a written plan, by JSON pointer.
fn tables(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            entries.iter().for_each(|(key, value)| tables(value, format!("{at}/{key}"), found));
            found.push(at);
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| tables(value, format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

#[test]
fn an_unknown_key_is_refused_in_every_table() {
    for good in [by_hand(), written()] {
        let mut pointers = Vec::new();
        tables(&good, String::new(), &mut pointers);
        for pointer in pointers {
            let mut plan = good.clone();
            plan.pointer_mut(&pointer).expect("the table")["colour"] = json!("blue");
            assert!(check(&plan).is_err(), "an unknown key in {pointer:?} is taken");
        }
    }
}

#[test]
fn what_is_wrong_in_a_plan_is_refused() {
    let mut plan = by_hand();
    plan["replicas"][0]["stages"][0]["layers"] = json!([0]);
    assert!(check(&plan).unwrap_err().contains("minItems"));
    let changes: &[(&str, Value)] = &[
        ("/version", json!(2)),
        ("/cluster", json!(7)),
        ("/micro_batch", json!(-1)),
        ("/schedule/kind", json!("2f2b")),
        ("/replicas/0/stages/0/ranks/0/nic", json!("token ring")),
        ("/replicas/0/boundaries/0/codec", json!({ "kind": "subspace" })),
        ("/replicas/0/boundaries/0/codec", json!({ "kind": "bf16", "rank": 8 })),
        ("/exchange/0", json!({ "replicas": [0, 1], "kind": "sparse", "every": 30 })),
        ("/exchange/0", json!({ "replicas": [0, 1], "kind": "dense", "top_k": 64, "every": 1 })),
        (
            "/exchange/0",
            json!({ "replicas": [0, 1], "kind": "sparse", "top_k": 64, "every": 1, "zero1": true }),
        ),
    ];
    for (pointer, to) in changes {
        let mut plan = by_hand();
        *plan.pointer_mut(pointer).expect("the value") = to.clone();
        assert!(check(&plan).is_err(), "{pointer} as {to} is taken");
    }
}
