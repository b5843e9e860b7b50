"""Sailor: plans, and judges a layout, on its own inputs for OPT-350M on A100-40 and V100-16 in one zone.

Its simulator has no form for replicas of unlike shape or share. Such a layout is judged shape by shape with the
simulator's own functions: the slowest shape's pipeline, plus the slowest stage's all-reduce over all replicas.
"""

import contextlib
import io
import json
import sys
import time
import types
from math import ceil
from pathlib import Path

from layout import place, shapes, share

ZONE = "us-central1-a"
LAYERS = 26


class Sailor:
    def __init__(self, cache: Path):
        self.root = cache / "sailor"
        self.planner = self.root / "sailor" / "Planner"
        self.providers = self.root / "sailor" / "providers"
        self.training_file = self.planner / "simulations" / "configs" / "training_config_opt_350.json"
        self.training = json.loads(self.training_file.read_text())
        sys.path[:0] = [str(cache), str(self.root)]

    def plan(self, counts: dict[str, int]) -> dict:
        """Its first plan that its own simulator finds to fit, and the seconds it took."""
        import libplanner

        begin = time.perf_counter()
        planner = libplanner.SailorPlanner(
            f"{self.planner}/sailor_planner/profiles/OPT-350/",
            f"{self.providers}/multizone_bandwidths_het.json",
            str(self.training_file),
            f"{self.planner}/llm_info.json",
            f"{self.providers}/gcp/communication_cost.json",
            True,
            False,
            f"{self.planner}/sailor_planner/dummy_quotas_dict.json",
            "throughput",
        )
        tables_s = time.perf_counter() - begin
        plans = planner.get_sorted_plans({ZONE: dict(counts)}, 0.0, 0.0)
        seconds = time.perf_counter() - begin
        simulator = self.simulator()
        kinds = sorted(counts)
        for found in plans:
            stages = [list(stage) for stage in found.get_stages()]
            groups = [[(kinds[g[0]], g[1]) for g in stage] for stage in found.get_config_per_stage()]
            if quiet(simulator.check_config_fits, pipelines(stages, groups, found.get_mbs())):
                layout = self.layout(stages, groups, found.get_mbs())
                return {"seconds": seconds, "tables_s": tables_s, "layout": layout, "own_s": found.get_Tpp()}
        raise SystemExit(f"none of Sailor's {len(plans)} plans fits by its own simulator")

    def layout(self, stages: list[list[int]], groups: list[list[tuple[str, int]]], micro_batch: int) -> dict:
        copies = len(groups[0])
        microbatches = share(self.training["global_batch_size"] // micro_batch, copies)
        replicas = [
            {
                "micro_batch": micro_batch,
                "microbatches": microbatches[r],
                "stages": [
                    {"kind": group[r][0], "tensor_parallel": group[r][1], "layers": ours(layers)}
                    for layers, group in zip(stages, groups)
                ],
            }
            for r in range(copies)
        ]
        return {"replicas": replicas}

    def judge(self, layout: dict) -> dict:
        """Seconds of an iteration by its simulator, and whether it finds that the plan fits."""
        replicas = len(layout["replicas"])
        slowest_s, sync_s, fits = 0.0, 0.0, True
        for (micro_batch, microbatches, cuts), members in by_cuts(layout).items():
            stages = [theirs(layers) for layers in cuts]
            groups = [
                [(r["stages"][s]["kind"], len(r["stages"][s]["seats"])) for r in members] for s in range(len(stages))
            ]
            self.check_profiled(groups, micro_batch)
            plan = pipelines(stages, groups, micro_batch)
            simulator = self.simulator(microbatches, replicas)
            fits &= bool(quiet(simulator.check_config_fits, plan))
            pipeline_s, _, _ = quiet(simulator.simulate_iteration_time, plan)
            slowest_s, sync_s = max(slowest_s, pipeline_s - simulator.sync_s), max(sync_s, simulator.sync_s)
        return {"seconds": slowest_s + sync_s, "fits": fits}

    def check_profiled(self, groups: list[list[tuple[str, int]]], micro_batch: int) -> None:
        """Its simulator takes what it has no profile of as free."""
        profiles = json.loads((self.planner / "simulations" / "profiles_tmp.json").read_text())["OPT-350"]
        for kind, degree in {g for stage in groups for g in stage}:
            if str(degree) not in profiles[kind].get(str(micro_batch), {}):
                raise ValueError(f"Sailor has no profile of {kind} at degree {degree}, microbatch {micro_batch}")

    def simulator(self, microbatches: int | None = None, copies: int | None = None):
        sys.modules.setdefault("torch", types.ModuleType("torch"))  # imported by a module of which nothing here uses it
        from sailor.Planner.simulations import runtime_simulator as theirs

        class Judge(theirs.Simulator):
            """Theirs; of one shape among others, with its own share of microbatches."""

            sync_s = 0.0

            def get_time_per_pipeline(self, *args, **kwargs):
                *head, counted = args
                return super().get_time_per_pipeline(*head, microbatches or counted, **kwargs)

            def estimate_sync_time(self, plan):
                [pipeline] = plan.pipeline_list
                if copies is not None:
                    pipeline.tmp_configs = [(s * copies)[:copies] for s in pipeline.tmp_configs]
                    pipeline.num_dp = [copies for _ in pipeline.num_dp]
                self.sync_s = super().estimate_sync_time(plan)
                return self.sync_s

        read = lambda path: json.loads(path.read_text())
        info, profiles = read(self.planner / "llm_info.json"), read(self.planner / "simulations" / "profiles_tmp.json")
        # It looks for <path>/sailor/sailor; ours is <path>/sailor.
        (self.root / "self").mkdir(exist_ok=True)
        link = self.root / "self" / "sailor"
        if not link.exists():
            link.symlink_to(self.root)
        return Judge(str(self.root / "self"), self.training, info, False, profiles, zone=ZONE)


def by_cuts(layout: dict) -> dict[tuple, list[dict]]:
    """Replicas by microbatch, microbatches and cuts: what its simulator takes as one pipeline.

    Replicas that differ only by one microbatch, which does not divide, count with the larger: as its own `ceil` does.
    """
    found = {}
    for replica, count in shapes(layout):
        cuts = tuple(tuple(stage["layers"]) for stage in replica["stages"])
        found.setdefault((replica["micro_batch"], cuts), []).append((replica, count))
    merged = {}
    for (micro_batch, cuts), members in found.items():
        most = max(replica["microbatches"] for replica, _ in members)
        for replica, count in members:
            mine = replica["microbatches"]
            key = (micro_batch, most if mine >= most - 1 else mine, cuts)
            merged.setdefault(key, []).extend([replica] * count)
    return merged


def pipelines(stages: list[list[int]], groups: list[list[tuple[str, int]]], micro_batch: int) -> dict:
    """Its simulator's form: each group is one machine with as many GPUs as its degree."""
    groups = [[([(kind, degree, ZONE)], degree) for kind, degree in stage] for stage in groups]
    pipeline = {
        "num_stages": len(stages),
        "layers_per_stage": stages,
        "tmp_per_stage": groups,
        "dp": [len(stage) for stage in groups],
    }
    return {"pipeline_list": [pipeline], "mbs": micro_batch}


def ours(layers: list[int]) -> list[int]:
    """Its layer 0 is the embedding, its last the head; they are not counted in ours."""
    begin, end = max(layers[0], 1) - 1, min(layers[-1], LAYERS - 2)
    if begin >= end:
        raise ValueError(f"a stage of nothing but embedding or head, {layers}, has no counterpart in our plans")
    return [begin, end]


def theirs(layers: tuple[int, int]) -> list[int]:
    begin, end = layers[0] + 1, layers[1] + 1
    return list(range(0 if begin == 1 else begin, LAYERS if end == LAYERS - 1 else end))


def quiet(function, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args)


def plan(cache: Path, case) -> dict:
    from layout import hosts_of

    counts = {h.kind: h.nodes * h.gpus for h in hosts_of(case.cluster_file)}
    answer = Sailor(cache).plan(counts)
    place(answer["layout"]["replicas"], case.cluster_file)
    return answer


def judge(cache: Path, case, layout: dict) -> dict:
    return Sailor(cache).judge(layout)
