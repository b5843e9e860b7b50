"""Metis: plans, and judges a layout by its estimate, a model of which its own A100 profile gives the layers.

Its sample profile is of ten layers on A100; the same layers are given to it 32 times (embedding and head among them),
and V100 takes SLOWDOWN times as long. What the sample's pass took beyond its layers is left out but for BEYOND_MS: the
estimate adds it to every microbatch of whatever plan, and refuses a profile without. Its estimate reads the rate inside a node for that between nodes too, so both are
given the same. It takes rates in GB/s and times in ms, which its cost needs to be of one unit (its README's rates would
make communication free).

Its estimate has one share of microbatches for all replicas, and one degree and count for each stage. A layout beyond
that is judged shape by shape with the estimate's own terms: the slowest shape, plus the slowest all-reduce over all
replicas.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path

from layout import hosts_of, place, shapes

SLOWDOWN = 2.5
"""V100 against A100: 125 and 312 TFLOP/s in fp16."""
BEYOND_MS = 1e-3
LAYERS = 32
BATCH = 128
INTRA_GB_PER_S = 25
MEMORY_GB = {"A100": 80, "V100": 32}
SEARCH = {"max_profiled_tp_degree": 4, "max_profiled_batch_size": 4, "min_group_scale_variance": 1, "max_permute_len": 4}
MODEL = {"model_name": "GPT", "hidden_size": 4096, "sequence_length": 1024, "vocab_size": 51200}


def write_profiles(samples: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in samples.glob("DeviceType.A100_*.json"):
        for kind, slower in (("A100", 1.0), ("V100", SLOWDOWN)):
            stretched = stretch(json.loads(path.read_text()), slower)
            (folder / path.name.replace("A100", kind)).write_text(json.dumps(stretched, indent=1))


def stretch(sample: dict, slower: float) -> dict:
    """LAYERS entries in place of the sample's."""
    times, parameters = sample["execution_time"], sample["model"]["parameters"]
    before = len(times["layer_compute_total_ms"])
    longer = lambda values, factor=1.0: [
        v * factor for v in [values[0], *([values[1]] * (LAYERS - 2)), values[-1]]
    ]
    times["layer_compute_total_ms"] = longer(times["layer_compute_total_ms"], slower)
    times["forward_backward_time_ms"] = sum(times["layer_compute_total_ms"]) + BEYOND_MS
    times["optimizer_time_ms"] *= slower * LAYERS / before
    parameters["parameters_per_layer_bytes"] = longer(parameters["parameters_per_layer_bytes"])
    sample["execution_memory"]["layer_memory_total_mb"] = longer(sample["execution_memory"]["layer_memory_total_mb"])
    sample["model"]["num_layers"] = LAYERS
    return sample


class Metis:
    def __init__(self, cache: Path, case):
        self.root, self.case = cache / "Metis", case
        self.work = cache / "work" / case.name
        write_profiles(self.root / "profile_data_samples", self.work / "profile")
        hosts = [h for h in hosts_of(case.cluster_file) for _ in range(h.nodes)]
        (self.work / "hostfile").write_text("".join(f"IP{i} slots={h.gpus}\n" for i, h in enumerate(hosts)))
        entry = lambda h: {
            "instance_type": h.kind,
            "inter_bandwidth": INTRA_GB_PER_S,
            "intra_bandwidth": INTRA_GB_PER_S,
            "memory": MEMORY_GB[h.kind],
        }
        (self.work / "clusterfile.json").write_text(json.dumps({f"IP{i}": entry(h) for i, h in enumerate(hosts)}))
        options = {
            **MODEL,
            **SEARCH,
            "num_layers": LAYERS,
            "gbs": BATCH,
            "hostfile_path": self.work / "hostfile",
            "clusterfile_path": self.work / "clusterfile.json",
            "profile_data_path": self.work / "profile",
        }
        sys.argv = ["cost_het_cluster.py", *(f"--{key}={value}" for key, value in options.items())]
        sys.path.insert(0, str(self.root))

    def plan(self) -> dict:
        begin = time.perf_counter()
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            found = runpy.run_path(str(self.root / "cost_het_cluster.py"), run_name="__main__")["sorted_result"]
        seconds = time.perf_counter() - begin
        for rank, (kinds, groups, strategies, batches, cuts, _, cost_ms) in enumerate(found):
            # Its balancer emits empty stages, and last ones short of the last layer: plans of another model.
            if cuts[0] == 0 and cuts[-1] == LAYERS and all(a < b for a, b in zip(cuts, cuts[1:])):
                try:
                    layout = self.layout([k.name for k in kinds], groups, strategies, batches, cuts)
                except ValueError:
                    continue
                return {"seconds": seconds, "plans": len(found), "rank": rank, "own_s": cost_ms / 1e3, "layout": layout}
        raise SystemExit(f"none of Metis's {len(found)} plans can be expressed")

    def layout(self, kinds: list[str], groups: list[int], strategies: list, batches: int, cuts: list[int]) -> dict:
        """Its stages may have unlike numbers of replicas, ours not; where they are alike the plan is the same."""
        if len({data for data, _ in strategies}) != 1:
            raise ValueError("stages of unlike data-parallel degree")
        copies = strategies[0][0]
        order = [k for k in kinds for h in hosts_of(self.case.cluster_file) if h.kind == k for _ in range(h.nodes * h.gpus)]
        stages, at = [], 0
        for (_, degree), group, begin, end in zip(strategies, groups, cuts, cuts[1:]):
            of = order[at : at + group]
            stages.append([(of[c * degree], degree, ours(begin, end)) for c in range(copies)])
            at += group
        replicas = [
            {
                "micro_batch": BATCH // copies // batches,
                "microbatches": batches,
                "stages": [
                    {"kind": kind, "tensor_parallel": degree, "layers": layers}
                    for kind, degree, layers in (stage[c] for stage in stages)
                ],
            }
            for c in range(copies)
        ]
        return {"replicas": replicas}

    def judge(self, layout: dict) -> dict:
        estimator, replicas = self.estimator(), len(layout["replicas"])
        estimates = [self.shape_ms(estimator, replica, replicas) for replica, _ in shapes(layout)]
        pipeline_ms, reduce_ms = (max(part) for part in zip(*estimates))
        return {"seconds": (pipeline_ms + reduce_ms) / 1e3, "fits": None}

    def shape_ms(self, estimator, replica: dict, replicas: int) -> tuple[float, float]:
        """As `HeteroCostEstimator.get_cost` adds up, of one replica's stages; the all-reduce apart."""
        batches, micro_batch = replica["microbatches"], replica["micro_batch"]
        stage_ms, update_ms, reduce_ms, send_ms = [], [], [], 0.0
        for stage in replica["stages"]:
            begin, end = theirs(stage["layers"])
            degree = len(stage["seats"])
            key = f"tp{degree}_bs{micro_batch}"
            stage_ms.append(estimator._get_execution_time(stage["kind"], key, begin, end))
            update_ms.append(estimator._get_parameter_update_cost(degree, end - begin))
            size = estimator.model_volume.get_parameter_size_by_stage(degree, begin, end)
            reduce_ms.append(estimator._get_dp_cost([size], INTRA_GB_PER_S, replicas))
            if end < LAYERS:
                size = estimator.model_volume.get_activation_size(end, micro_batch, degree)
                send_ms += estimator._get_pp_cost(size, INTRA_GB_PER_S)
        last = replica["stages"][-1]
        beyond_ms = estimator._get_fb_sync_cost([last["kind"]], len(last["seats"]), micro_batch) * batches
        total = (batches - 1) * max(stage_ms) + sum(stage_ms) + beyond_ms + max(update_ms) + send_ms
        return total + estimator._get_batch_generate_cost(batches), max(reduce_ms)

    def estimator(self):
        from data_loader import ProfileDataLoader
        from gpu_cluster import GPUCluster
        from model.activation_parameter import GPTActivationAndParam
        from model.cost_estimator import HeteroCostEstimator
        from utils import ModelConfig

        cluster = GPUCluster(str(self.work / "hostfile"), str(self.work / "clusterfile.json"))
        profiles, _ = ProfileDataLoader(str(self.work / "profile")).load_profile_data_all()
        config = ModelConfig(**MODEL, num_layers=LAYERS, attention_head_size=128)
        volume = GPTActivationAndParam(config, profiles["model"]["parameters"])
        return HeteroCostEstimator(profiles, config, volume, cluster)


def ours(begin: int, end: int) -> list[int]:
    """Its layer 0 is the embedding, its last the head; they are not counted in ours."""
    begin, end = max(begin, 1) - 1, min(end, LAYERS - 1) - 1
    if begin >= end:
        raise ValueError("a stage of nothing but embedding or head has no counterpart in our plans")
    return [begin, end]


def theirs(layers: list[int]) -> tuple[int, int]:
    begin, end = layers[0] + 1, layers[1] + 1
    return (0 if begin == 1 else begin), (LAYERS if end == LAYERS - 1 else end)


def plan(cache: Path, case) -> dict:
    answer = Metis(cache, case).plan()
    place(answer["layout"]["replicas"], case.cluster_file)
    return answer


def judge(cache: Path, case, layout: dict) -> dict:
    return Metis(cache, case).judge(layout)
