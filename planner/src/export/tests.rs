//! What each program is told for three plans, and what it is spared.

use serde_json::{Value, json};

use super::*;

/// Holmes's hybrid cluster: two nodes of two GPUs with InfiniBand, two with RoCE; stage 0 on the first, 1 on the second.
fn hybrid() -> Value {
    let stage = |layers: [u32; 2], rank: u32, host: &str, gpu: u32, nic: &str| json!({ "layers": layers, "ranks": [{ "rank": rank, "host": host, "gpu": gpu, "nic": nic }] });
    let replica = |r: u32| {
        let (host, gpu) = (r / 2, r % 2);
        json!({
            "microbatches": 8,
            "stages": [
                stage([0, 16], 2 * r, &format!("ib-{host}"), gpu, "infiniband"),
                stage([16, 30], 2 * r + 1, &format!("roce-{host}"), gpu, "roce"),
            ],
            "boundaries": [{ "codec": { "kind": "none" }, "transport": "nccl" }],
        })
    };
    json!({
        "version": 1,
        "cluster": { "clusters": [fabric("ib", "infiniband"), fabric("roce", "roce")], "links": [
            { "between": ["ib", "roce"], "rate_bytes_per_s": 3.125e9, "latency_s": 1e-4 },
        ] },
        "model": model("gpt", 30),
        "micro_batch": 4,
        "schedule": { "kind": "1f1b", "virtual_stages": 1 },
        "replicas": [replica(0), replica(1), replica(2), replica(3)],
        "exchange": [{ "replicas": [0, 1, 2, 3], "kind": "dense", "every": 1 }],
    })
}

/// One InfiniBand cluster, tensor degree 2, two pipeline ranks with two stages each, of uneven length.
fn interleaved() -> Value {
    let stage = |layers: [u32; 2], host: u32| {
        let rank = |t: u32| json!({ "rank": 2 * host + t, "host": format!("ib-{host}"), "gpu": t, "nic": "infiniband" });
        json!({ "layers": layers, "ranks": [rank(0), rank(1)] })
    };
    let boundary = json!({ "codec": { "kind": "bf16" }, "transport": "nccl" });
    let mut plan = hybrid();
    plan["cluster"] = json!({ "clusters": [fabric("ib", "infiniband")], "links": [] });
    plan["model"] = model("llama", 10);
    plan["model"]["global_batch"] = 32.into();
    plan["schedule"]["virtual_stages"] = 2.into();
    plan["replicas"] = json!([{
        "microbatches": 8,
        "stages": [stage([0, 3], 0), stage([3, 6], 1), stage([6, 8], 0), stage([8, 10], 1)],
        "boundaries": [boundary, boundary, boundary],
    }]);
    plan["exchange"] = json!([]);
    plan
}

fn fabric(name: &str, class: &str) -> Value {
    json!({
        "name": name,
        "hosts": [{ "name": format!("{name}-0"), "address": format!("10.0.{}.1", name.len()) }, { "name": format!("{name}-1") }],
        "gpus": 2,
        "gpu": { "name": "x", "memory_bytes": 80_000_000_000u64, "bf16_flops_per_s": 3.12e14, "fp16_flops_per_s": 3.12e14,
                 "fp32_flops_per_s": 1.95e13, "efficiency": 0.5 },
        "intra": { "rate_bytes_per_s": 3e11, "latency_s": 2e-6 },
        "nic": { "class": class, "rate_bytes_per_s": 2.5e10, "count": 2, "latency_s": 5e-6 },
        "ethernet": { "rate_bytes_per_s": 3.125e9, "latency_s": 5e-5 },
    })
}

fn model(kind: &str, layers: u32) -> Value {
    json!({
        "kind": kind, "layers": layers, "hidden": 3072, "heads": 32, "vocab": 51200, "sequence": 2048,
        "global_batch": 128, "micro_batch": 4, "precision": "bf16", "optimizer": "adamw", "recompute": "selective",
        "exchange": "dense", "boundary": "none",
    })
}

fn settings() -> Settings {
    let command = ["python", "train.py", "--name=it's"].map(String::from).to_vec();
    let container = Container {
        image: "registry/train:1".into(),
        command,
        node_label: "narrows/cluster".into(),
        rdma_resource: Some("rdma/hca".into()),
    };
    Settings { port: 29_500, name: "narrows".into(), container: Some(container), ..Settings::default() }
}

fn exported(plan: &Value, target: Target) -> Export {
    export_with(plan, target, &settings()).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn export_with(plan: &Value, target: Target, settings: &Settings) -> Result<Export, Refusal> {
    export(&serde_json::from_value(plan.clone()).unwrap(), target, settings)
}

fn file<'a>(export: &'a Export, path: &str) -> &'a str {
    let paths: Vec<&str> = export.files.iter().map(|f| f.path.as_str()).collect();
    &export.files.iter().find(|f| f.path == path).unwrap_or_else(|| panic!("no {path} in {paths:?}")).text
}

fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "no `{line}` in:\n{text}");
    }
}

const FRAMEWORKS: [Target; 3] = [Target::Megatron, Target::Torchtitan, Target::Deepspeed];

#[test]
fn megatron_gets_holmes_uneven_stages_as_a_layout() {
    let export = exported(&hybrid(), Target::Megatron);
    let run = file(&export, "run.sh");
    has(
        run,
        &[
            "--tensor-model-parallel-size 1\n",
            "--pipeline-model-parallel-size 2\n",
            "--pipeline-model-parallel-layout 'Et*16|t*14L'\n",
            "--num-layers 30\n",
            "--micro-batch-size 4\n",
            "--global-batch-size 128\n",
            "--recompute-activations\n",
            "narrows_nccl.py",
        ],
    );
    assert!(!run.contains("--use-distributed-optimizer"), "{run}");
}

#[test]
fn megatron_gets_interleaved_stages_in_the_order_of_layers() {
    let export = exported(&interleaved(), Target::Megatron);
    has(
        file(&export, "run.sh"),
        &[
            "--pipeline-model-parallel-layout 'Et*3|t*3|t*2|t*2L'\n",
            "--pipeline-model-parallel-size 2\n",
            "--tensor-model-parallel-size 2\n",
            "--swiglu\n",
            "--normalization RMSNorm\n",
        ],
    );
}

#[test]
fn the_rank_of_the_mesh_lands_on_the_gpu_of_the_plan() {
    // Plan: replica r has ranks 2r and 2r + 1. Mesh: stage 0 of all replicas, then stage 1.
    let export = exported(&hybrid(), Target::Megatron);
    has(
        file(&export, "hosts/ib-1.env"),
        &[
            "export WORLD_SIZE=8\n",
            "export MASTER_ADDR=10.0.2.1\n",
            "export CUDA_VISIBLE_DEVICES=0,1\n",
            "export PET_NODE_RANK=1\n",
            "0) export RANK=2 NARROWS_REPLICA=2 NARROWS_STAGE=0 ;;\n1) export RANK=3 NARROWS_REPLICA=3 NARROWS_STAGE=0 ;;\n",
        ],
    );
    has(file(&export, "hosts/roce-0.env"), &["0) export RANK=4 NARROWS_REPLICA=0 NARROWS_STAGE=1 ;;\n"]);
}

#[test]
fn the_plans_own_numbers_may_be_scattered_which_torchrun_cannot_have() {
    let export = exported(&hybrid(), Target::Env);
    let environment = file(&export, "hosts/roce-1.env");
    has(environment, &["0) export RANK=5 NARROWS_REPLICA=2 NARROWS_STAGE=1 ;;\n1) export RANK=7 "]);
    assert!(!environment.contains("PET_"), "{environment}");
    assert!(export.notes.iter().any(|n| n.contains("torchrun")), "{:?}", export.notes);
    let mesh =
        export_with(&hybrid(), Target::Env, &Settings { order: RankOrder::Mesh, ..settings() }).unwrap();
    has(file(&mesh, "hosts/roce-1.env"), &["export PET_NODE_RANK=3\n", "0) export RANK=6 "]);
}

#[test]
fn an_interleaved_plan_has_each_gpu_once() {
    let export = exported(&interleaved(), Target::Env);
    has(
        file(&export, "hosts/ib-1.env"),
        &["export WORLD_SIZE=4\n", "0) export RANK=2 ", "1) export RANK=3 "],
    );
    assert!(!file(&export, "hosts/ib-1.env").contains("2) "));
}

#[test]
fn nccl_is_told_its_network_by_environment_where_one_reaches_all() {
    let one = exported(&interleaved(), Target::Env);
    has(file(&one, "hosts/ib-0.env"), &["export NCCL_NET=IB\n"]);
    assert!(one.files.iter().all(|f| f.path != "narrows_nccl.py"));
    let mut sockets = interleaved();
    for stage in sockets["replicas"][0]["stages"].as_array_mut().unwrap() {
        stage["ranks"].as_array_mut().unwrap().iter_mut().for_each(|rank| rank["nic"] = "ethernet".into());
    }
    has(
        file(&exported(&sockets, Target::Env), "hosts/ib-0.env"),
        &[
            "export NCCL_NET=Socket\nexport NCCL_IB_DISABLE=1\nexport NCCL_SOCKET_IFNAME=^ib,lo,docker,virbr\n",
        ],
    );
}

#[test]
fn nccl_is_told_by_group_where_fabrics_differ() {
    let named = Settings {
        hca: [("ib".into(), "mlx5_0,mlx5_1".into())].into(),
        interface: [("roce".into(), "eth0; reboot".into())].into(),
        gid_index: [("roce".into(), 3), ("ib".into(), 5)].into(),
        ..settings()
    };
    let export = export_with(&hybrid(), Target::Megatron, &named).unwrap();
    let (ib, roce) = (file(&export, "hosts/ib-0.env"), file(&export, "hosts/roce-0.env"));
    has(ib, &["export NCCL_IB_HCA=mlx5_0,mlx5_1\n", "export NCCL_SOCKET_IFNAME=^ib,lo,docker,virbr\n"]);
    has(roce, &["export NCCL_IB_GID_INDEX=3\n", "export NCCL_SOCKET_IFNAME='eth0; reboot'\n"]);
    assert!(!ib.contains("GID") && !roce.contains("HCA"), "{ib}{roce}");
    for environment in [ib, roce] {
        assert!(
            !environment.contains("NCCL_NET=") && !environment.contains("NCCL_IB_DISABLE"),
            "{environment}"
        );
    }
    has(file(&export, "narrows_nccl.py"), &["RUNS = [(4, \"ib\"), (4, \"roce\")]"]);
}

#[test]
fn a_setting_for_a_cluster_that_is_not_there_is_refused() {
    let settings = Settings { hca: [("ibb".into(), "mlx5_0".into())].into(), ..settings() };
    let refusal = export_with(&hybrid(), Target::Env, &settings).unwrap_err();
    assert!(refusal.to_string().contains("did you mean `ib`?"), "{refusal}");
}

#[test]
fn torchtitan_gets_cuts_as_module_names_and_its_schedule() {
    let export = exported(&interleaved(), Target::Torchtitan);
    let python = file(&export, "narrows_plan.py");
    has(
        python,
        &[
            "    [\"tok_embeddings\", \"layers.0\", \"layers.1\", \"layers.2\"],\n    [\"layers.3\",",
            "    [\"layers.8\", \"layers.9\", \"norm\", \"lm_head\"],\n",
            "pipeline_parallel_schedule=\"Interleaved1F1B\"",
            "local_batch_size=32,",
            "global_batch_size=32,",
            "pipeline_parallel_microbatch_size=4,",
            "disable_cuda_graphs=True,",
            "tensor_parallel_degree=2,",
            "activation_checkpoint=None,",
        ],
    );
    assert!(!python.contains('@'), "{python}");
    let table: toml::Table = file(&export, "narrows_plan.toml").parse().unwrap();
    let parts = table["parallelism"]["module_fqns_per_model_part"].as_array().unwrap();
    assert_eq!(parts.len(), 4);
    assert_eq!(parts[3].as_array().unwrap().last().unwrap().as_str(), Some("output"));
}

#[test]
fn torchtitan_shards_where_the_plan_does_and_replicates_where_it_does_not() {
    let mut plan = hybrid();
    plan["model"] = model("llama", 30);
    let replicated = exported(&plan, Target::Torchtitan);
    has(
        file(&replicated, "narrows_plan.py"),
        &["data_parallel_replicate_degree=4,", "data_parallel_shard_degree=1,"],
    );
    assert!(replicated.notes.iter().any(|n| n.contains("0.2.2")), "{:?}", replicated.notes);
    plan["exchange"][0]["zero1"] = true.into();
    let sharded = exported(&plan, Target::Torchtitan);
    has(
        file(&sharded, "narrows_plan.py"),
        &["data_parallel_shard_degree=4,", "fsdp_reshard_after_forward=\"never\","],
    );
    has(file(&sharded, "narrows_plan.toml"), &["data_parallel_shard_degree = 4\n"]);
    has(file(&exported(&plan, Target::Megatron), "run.sh"), &["--use-distributed-optimizer\n"]);
}

#[test]
fn deepspeed_gets_batch_sizes_that_multiply_and_even_cuts() {
    let mut plan = hybrid();
    even(&mut plan);
    let export = exported(&plan, Target::Deepspeed);
    let config: Value = serde_json::from_str(file(&export, "ds_config.json")).unwrap();
    assert_eq!(config["train_batch_size"], 128);
    assert_eq!(config["train_micro_batch_size_per_gpu"], 4);
    assert_eq!(config["gradient_accumulation_steps"], 8);
    assert_eq!(config["zero_optimization"]["stage"], 0);
    has(file(&export, "narrows_pipeline.py"), &["\"num_stages\": 2,", "type:^{layer_class}$"]);
    has(file(&export, "hostfile"), &["\n10.0.2.1 slots=2\nib-1 slots=2\n10.0.4.1 slots=2\nroce-1 slots=2\n"]);
}

#[test]
fn slurm_gets_a_component_for_each_kind_of_host() {
    let export = exported(&hybrid(), Target::Slurm);
    has(
        file(&export, "job.sbatch"),
        &[
            "#SBATCH --nodelist=ib-0,ib-1\n#SBATCH --ntasks-per-node=2\n#SBATCH --gpus-per-node=2\n#SBATCH --exclusive\n#SBATCH hetjob\n",
            "#SBATCH --nodelist=roce-0,roce-1\n",
            "srun --het-group=0,1 --kill-on-bad-exit=1",
        ],
    );
    let one = exported(&interleaved(), Target::Slurm);
    assert!(!file(&one, "job.sbatch").contains("het"));
}

#[test]
fn kubernetes_gets_a_job_for_each_kind_of_host_and_the_environment_of_each_pod() {
    let export = exported(&hybrid(), Target::K8s);
    has(
        file(&export, "jobset.yaml"),
        &[
            "kind: \"ConfigMap\"\n",
            "  ib-1.env: |\n    # ib-1: 2 of 8 ranks.",
            "    export MASTER_ADDR=narrows-ib-0-0.narrows\n",
            "kind: \"JobSet\"\n",
            "  - name: \"roce\"\n    replicas: 1\n",
            "        completions: 2\n        parallelism: 2\n        backoffLimit: 0\n",
            "              narrows/cluster: \"roce\"\n",
            "                  nvidia.com/gpu: 2\n                  rdma/hca: 1\n",
            "              - \"--name=it's\"\n",
        ],
    );
    let nameless = Settings { container: None, ..settings() };
    let refusal = export_with(&hybrid(), Target::K8s, &nameless).unwrap_err();
    assert!(refusal.to_string().contains("--image"), "{refusal}");
}

#[test]
fn what_no_framework_can_say_is_refused_by_name() {
    type Break = fn(&mut Value);
    let cases: &[(&str, Break)] = &[
        ("unlike replicas: stage 0 has layers 0..16 in replica 0, 0..20 in replica 2", |p| {
            p["replicas"][2]["stages"][0]["layers"] = json!([0, 20]);
            p["replicas"][2]["stages"][1]["layers"] = json!([20, 30]);
        }),
        ("unlike replicas: replica 0 takes 8 microbatches a step, replica 1 takes 9", |p| {
            p["replicas"][1]["microbatches"] = 9.into();
        }),
        ("unlike replicas: replica 0 has microbatches of 4 sequences, replica 3 of 2", |p| {
            p["replicas"][3]["micro_batch"] = 2.into();
        }),
        ("unlike replicas: replica 0 recomputes selective, replica 3 full", |p| {
            p["replicas"][3]["recompute"] = "full".into();
        }),
        ("unlike replicas: replica 1 has 1 stages on 1 pipeline ranks, replica 0 has 2 of them", |p| {
            let stages = p["replicas"][1]["stages"].as_array_mut().unwrap();
            stages.pop();
            stages[0]["layers"] = json!([0, 30]);
            p["replicas"][1]["boundaries"] = json!([]);
        }),
        ("stage 1 of replica 0 has a tensor-parallel degree of 2", |p| {
            let second = json!({ "rank": 8, "host": "roce-1", "gpu": 1, "nic": "roce" });
            p["replicas"][0]["stages"][1]["ranks"].as_array_mut().unwrap().push(second);
        }),
        ("behind stage 0 of replica 1 has the codec subspace", |p| {
            p["replicas"][1]["boundaries"][0]["codec"] = json!({ "kind": "subspace", "rank": 8 });
        }),
        ("has the codec int8", |p| {
            p["replicas"][1]["boundaries"][0]["codec"] = json!({ "kind": "int8" });
        }),
        ("bf16 under an fp32 model", |p| {
            p["model"]["precision"] = "fp32".into();
            p["replicas"][1]["boundaries"][0]["codec"] = json!({ "kind": "bf16" });
        }),
        ("exchange 0 is sparse", |p| {
            p["exchange"][0] =
                json!({ "replicas": [0, 1, 2, 3], "kind": "sparse", "top_k": 64, "every": 30 });
        }),
        ("exchange 0 is streaming", |p| {
            p["exchange"][0] = json!({ "replicas": [0, 1, 2, 3], "kind": "streaming", "every": 30 });
        }),
        ("2 exchanges join its replicas", |p| {
            let half = |r: [u32; 2]| json!({ "replicas": r, "kind": "dense", "every": 1 });
            p["exchange"] = json!([half([0, 1]), half([1, 2])]);
        }),
        ("left open (`auto`)", |p| p["model"]["recompute"] = "auto".into()),
    ];
    for (what, spoil) in cases {
        let mut plan = hybrid();
        spoil(&mut plan);
        for target in FRAMEWORKS {
            let refusal = export_with(&plan, target, &settings()).expect_err(what);
            assert!(refusal.what.contains(what), "{target:?}: {refusal}");
            assert!(!refusal.help.is_empty());
        }
        // Any program can still be started by it.
        assert!(export_with(&plan, Target::Env, &settings()).is_ok(), "{what}");
    }
}

#[test]
fn what_one_framework_cannot_say_is_refused_by_it_alone() {
    let refused = |plan: &Value, target| export_with(plan, target, &settings()).unwrap_err().to_string();
    has(
        &refused(&hybrid(), Target::Deepspeed),
        &["DeepSpeed cannot hold this plan: explicit cuts: its stages have [16, 14]"],
    );
    has(&refused(&hybrid(), Target::Torchtitan), &["kind gpt"]);
    has(&refused(&interleaved(), Target::Deepspeed), &["explicit cuts"]);
    let mut plan = interleaved();
    plan["replicas"][0]["microbatches"] = 9.into();
    has(&refused(&plan, Target::Megatron), &["2 virtual stages with 9 microbatches"]);
    let mut plan = hybrid();
    plan["schedule"]["kind"] = "gpipe".into();
    even(&mut plan);
    has(&refused(&plan, Target::Megatron), &["gpipe"]);
    has(&refused(&plan, Target::Deepspeed), &["gpipe"]);
    plan["model"] = model("llama", 30);
    has(
        file(&exported(&plan, Target::Torchtitan), "narrows_plan.py"),
        &["pipeline_parallel_schedule=\"GPipe\""],
    );
    plan["model"]["precision"] = "fp16".into();
    has(&refused(&plan, Target::Torchtitan), &["fp16"]);
}

#[test]
fn a_folder_is_replaced_whole_or_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    write(&exported(&hybrid(), Target::Env), &path).unwrap();
    assert!(path.join("hosts/roce-1.env").exists() && path.join("narrows_nccl.py").exists());
    write(&exported(&interleaved(), Target::Env), &path).unwrap();
    assert!(path.join("hosts/ib-1.env").exists());
    assert!(!path.join("hosts/roce-1.env").exists(), "of the earlier plan");
    let foreign = folder.path().join("mine");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "x").unwrap();
    assert!(matches!(write(&exported(&hybrid(), Target::Env), &foreign), Err(WriteError::Foreign(_))));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
}

fn even(plan: &mut Value) {
    for replica in plan["replicas"].as_array_mut().unwrap() {
        replica["stages"][0]["layers"] = json!([0, 15]);
        replica["stages"][1]["layers"] = json!([15, 30]);
    }
}

#[test]
fn grouped_queries_and_biases_are_said_or_refused() {
    let mut plan = interleaved();
    plan["model"]["kv_heads"] = 8.into();
    plan["model"]["biases"] = "qkv".into();
    let run = exported(&plan, Target::Megatron);
    has(
        file(&run, "run.sh"),
        &[
            "--group-query-attention\n",
            "--num-query-groups 8\n",
            "--disable-bias-linear\n",
            "--add-qkv-bias\n",
        ],
    );
    let refused = |plan: &Value, target| export_with(plan, target, &settings()).unwrap_err().to_string();
    has(&refused(&plan, Target::Torchtitan), &["biases"]);
    plan["model"]["biases"] = "attention".into();
    has(&refused(&plan, Target::Megatron), &["biases = \"attention\""]);
    plan["model"]["biases"] = "none".into();
    has(file(&exported(&plan, Target::Torchtitan), "narrows_plan.py"), &["n_kv_heads=8,"]);
    plan["model"]["tied_embeddings"] = true.into();
    has(&refused(&plan, Target::Torchtitan), &["tied"]);
    assert!(!file(&exported(&plan, Target::Megatron), "run.sh").contains("--untie"));
}
