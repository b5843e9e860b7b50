"""A plan in the few words that all planners share, between their forms and our plan.json.

    layout  = {"replicas": [{"micro_batch": b, "microbatches": m, "stages": [stage, ...]}, ...]}
    stage   = {"kind": GPU, "layers": [begin, end), "seats": [[host, gpu], ...]}

Layers are transformer layers, counted from 0: the first stage has the embedding too, the last the head, as in our plans.
A stage's seats are its tensor-parallel group; `place` gives them where a peer only counts GPUs.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hosts:
    """One [[cluster]] of an inventory."""

    name: str
    kind: str
    nodes: int
    gpus: int
    nic: str


def hosts_of(cluster_file: Path) -> list[Hosts]:
    clusters = tomllib.loads(cluster_file.read_text())["cluster"]
    kind = lambda gpu: gpu if isinstance(gpu, str) else gpu["name"]
    return [Hosts(c["name"], kind(c["gpu"]), c["nodes"], c["gpus"], c["nic"]["class"]) for c in clusters]


def place(replicas: list[dict], cluster_file: Path) -> list[dict]:
    """Seats for replicas whose stages say `kind` and `tensor_parallel`.

    Groups go largest first, so that none is torn over two hosts, then stage by stage: a stage's copies lie side by side.
    """
    free = {}
    for hosts in hosts_of(cluster_file):
        seats = [[[f"{hosts.name}-{n}", g] for g in range(hosts.gpus)] for n in range(hosts.nodes)]
        free.setdefault(hosts.kind, []).extend(seats)
    wanted = [
        (-stage["tensor_parallel"], s, r, stage)
        for r, replica in enumerate(replicas)
        for s, stage in enumerate(replica["stages"])
    ]
    for _, _, _, stage in sorted(wanted, key=lambda w: w[:3]):
        group = stage.pop("tensor_parallel")
        host = next((seats for seats in free[stage["kind"]] if len(seats) >= group), None)
        if host is None:
            raise ValueError(f"no host with {group} free GPUs of kind {stage['kind']}")
        stage["seats"] = [host.pop(0) for _ in range(group)]
    return replicas


def share(total: int, replicas: int) -> list[int]:
    """Microbatches of each of like replicas: as even as can be."""
    return [total // replicas + (i < total % replicas) for i in range(replicas)]


def to_plan(layout: dict, cluster: Path, model: Path) -> dict:
    """Our plan.json, hand-written form: paths for inventory and model, gradients all-reduced at every step."""
    nic = {hosts.name: hosts.nic for hosts in hosts_of(cluster)}
    replicas, rank = layout["replicas"], 0
    micro_batch = replicas[0]["micro_batch"]
    written = []
    for replica in replicas:
        stages = []
        for stage in replica["stages"]:
            ranks = [
                {"rank": rank + i, "host": host, "gpu": gpu, "nic": nic[host.rsplit("-", 1)[0]]}
                for i, (host, gpu) in enumerate(stage["seats"])
            ]
            rank += len(ranks)
            stages.append({"layers": stage["layers"], "ranks": ranks})
        edge = {"codec": {"kind": "none"}, "transport": "tcp"}
        entry = {"microbatches": replica["microbatches"], "stages": stages, "boundaries": [edge] * (len(stages) - 1)}
        if replica["micro_batch"] != micro_batch:
            entry["micro_batch"] = replica["micro_batch"]
        written.append(entry)
    every_step = {"replicas": list(range(len(written))), "kind": "dense", "every": 1}
    return {
        "version": 1,
        "cluster": str(cluster),
        "model": str(model),
        "micro_batch": micro_batch,
        "schedule": {"kind": "1f1b", "virtual_stages": 1},
        "replicas": written,
        "exchange": [every_step] if len(written) > 1 else [],
    }


def from_plan(path: Path) -> dict:
    """The layout of a plan that `narrows plan` wrote. Only what all planners can say: plain stages, dense gradients."""
    plan = json.loads(path.read_text())
    if plan["schedule"]["virtual_stages"] != 1:
        raise ValueError(f"{path}: interleaved stages have no counterpart in the peers' plans")
    if any(exchange["kind"] != "dense" for exchange in plan["exchange"]):
        raise ValueError(f"{path}: only dense exchanges have a counterpart in the peers' plans")
    kind = {host["name"]: c["gpu"]["name"] for c in plan["cluster"]["clusters"] for host in c["hosts"]}
    replicas = []
    for replica in plan["replicas"]:
        stages = [
            {
                "kind": kind[stage["ranks"][0]["host"]],
                "layers": stage["layers"],
                "seats": [[r["host"], r["gpu"]] for r in stage["ranks"]],
            }
            for stage in replica["stages"]
        ]
        micro_batch = replica.get("micro_batch", plan["micro_batch"])
        replicas.append({"micro_batch": micro_batch, "microbatches": replica["microbatches"], "stages": stages})
    return {"replicas": replicas}


def shapes(layout: dict) -> list[tuple[dict, int]]:
    """Replicas that look alike but for their seats, and how many there are of each."""
    found = {}
    for replica in layout["replicas"]:
        stages = tuple((s["kind"], len(s["seats"]), tuple(s["layers"])) for s in replica["stages"])
        found.setdefault((replica["micro_batch"], replica["microbatches"], stages), []).append(replica)
    return [(replicas[0], len(replicas)) for replicas in found.values()]


def describe(layout: dict) -> str:
    """`24 x [V100-16 tp4: 12, A100-40: 12] m 19 b 2`, one shape after another."""
    def stage(s: dict) -> str:
        group = f" tp{len(s['seats'])}" if len(s["seats"]) > 1 else ""
        return f"{s['kind']}{group}: {s['layers'][1] - s['layers'][0]}"

    return "; ".join(
        f"{n} x [{', '.join(map(stage, r['stages']))}] m {r['microbatches']} b {r['micro_batch']}"
        for r, n in shapes(layout)
    )
