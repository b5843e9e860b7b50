"""FlashFlex (HexiScale): plans, and judges a layout by its cost, on machines of the specifications it ships.

Its walk over the number of pipelines is left as it is. What it credits is a batch per pipeline that was set for the
number of pipelines it began with; the layout says what that comes to, and judging goes by the same count.

Its cost has one number of microbatches for all pipelines. A layout beyond that has each pipeline's cost taken with its
own number.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import time
from pathlib import Path

from layout import hosts_of

PIPELINES = 4
"""To begin with; with them the batch is the model file's: PIPELINES microbatches of one sequence, 16 times."""
BATCH = 64
SPECIFICATIONS = {"A100": [312, 80, 200], "4090": [165.2, 24, 20]}
"""Name: TFLOP/s, GB, GB/s inside a machine; as in its `machine_amounts.json` (of the 4090 those of the row 4090-4)."""
OPTIONS = {
    "model-size": "llama-13b",
    "npipeline": PIPELINES,
    "inter_bw": 5,
    "global_bsz": BATCH,
    "micro_bsz": PIPELINES,
    "log_interval": 1000,
    "niter": 40,
}


class FlashFlex:
    def __init__(self, cache: Path, case):
        self.root, self.case = cache / "FlashFlex" / "experimental", case
        work = cache / "work" / case.name
        work.mkdir(parents=True, exist_ok=True)
        hosts = hosts_of(case.cluster_file)
        amounts = {h.kind: {str(h.gpus): h.nodes} for h in hosts}
        machines = {"machine_specs": SPECIFICATIONS, "machine_amounts": amounts}
        (work / "machines.json").write_text(json.dumps(machines))
        options = {**OPTIONS, "machine_config_path": work / "machines.json"}
        sys.argv = ["main.py", *(part for key, value in options.items() for part in (f"--{key}", str(value)))]
        sys.path.insert(0, str(self.root))
        # Devices are numbered machine by machine in the order of the amounts.
        self.seats = [[f"{h.name}-{n}", g] for h in hosts for n in range(h.nodes) for g in range(h.gpus)]
        self.kinds = [h.kind for h in hosts for _ in range(h.nodes * h.gpus)]

    def plan(self) -> dict:
        begin = time.perf_counter()
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            found = runpy.run_path(str(self.root / "main.py"), run_name="__main__")
        seconds = time.perf_counter() - begin
        if found["optimal"] is None:
            raise SystemExit("FlashFlex found no plan")
        layout = {"replicas": [self.replica(pipeline, len(found["optimal"])) for pipeline in found["optimal"]]}
        return {"seconds": seconds, "own_s": found["optimal_simulation"].overall_cost(), "layout": layout}

    def replica(self, pipeline: list, pipelines: int) -> dict:
        """Stages without layers are left out: their GPUs stand idle."""
        strategy, layers, _ = pipeline
        stages, at = [], 0
        for group, count in zip(strategy, layers):
            if count:
                seats = [self.seats[d] for d in group]
                stages.append({"kind": self.kinds[group[0]], "seats": seats, "layers": [at, at + int(count)]})
            at += int(count)
        if BATCH % pipelines:
            raise SystemExit(f"FlashFlex chose {pipelines} pipelines, among which {BATCH} sequences cannot be shared")
        return {"micro_batch": 1, "microbatches": BATCH // pipelines, "stages": stages}

    def judge(self, layout: dict) -> dict:
        with contextlib.redirect_stdout(io.StringIO()):
            from cost_modeling import MemoryCost, TimeCost
            from globals import configs

        device = {tuple(seat): d for d, seat in enumerate(self.seats)}
        pipelines = [
            [
                [[device[tuple(seat)] for seat in stage["seats"]] for stage in replica["stages"]],
                [stage["layers"][1] - stage["layers"][0] for stage in replica["stages"]],
                None,
            ]
            for replica in layout["replicas"]
        ]
        cost = TimeCost(pipelines, configs)
        slowest_s = 0.0
        for p, replica in enumerate(layout["replicas"]):
            configs.N_MB, configs.MB = replica["microbatches"], replica["micro_batch"]
            slowest_s = max(slowest_s, cost.pipeline_cost(p))
        fits = True
        for strategy, layers, _ in pipelines:
            for s, (group, count) in enumerate(zip(strategy, layers)):
                first, last = int(s == 0), int(s == len(strategy) - 1)
                memory = sum(configs.devices[d].memory for d in group)
                fits &= not MemoryCost(memory, count, group, configs, [first, last, last]).if_oom()
        # The factors of its `overall_cost`.
        return {"seconds": slowest_s * 1.8 + cost.dp_cost() * 1.1, "fits": fits}


def plan(cache: Path, case) -> dict:
    return FlashFlex(cache, case).plan()


def judge(cache: Path, case, layout: dict) -> dict:
    return FlashFlex(cache, case).judge(layout)
