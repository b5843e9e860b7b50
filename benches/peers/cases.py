"""What each peer is asked to plan, and the same as our inventory and model.

A case's numbers are given once, here and in its two TOML files; what the peer wants in a form of its own (quotas, host
files, machine lists, profiles) is written from them by the peer's script.
"""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    peer: str
    gpus: int
    model: str
    """Name of the model's file."""

    @property
    def name(self) -> str:
        return f"{self.peer}-{self.gpus}"

    @property
    def cluster_file(self) -> Path:
        return HERE / "cases" / f"{self.name}.toml"

    @property
    def model_file(self) -> Path:
        return HERE / "cases" / self.model


CASES = [
    Case("sailor", 128, "opt-350m.toml"),
    Case("sailor", 320, "opt-350m.toml"),
    Case("sailor", 512, "opt-350m.toml"),
    Case("metis", 32, "gpt-6b.toml"),
    Case("metis", 128, "gpt-6b.toml"),
    Case("flashflex", 128, "llama-13b.toml"),
]


def case_named(name: str) -> Case:
    found = [case for case in CASES if case.name == name]
    if not found:
        raise SystemExit(f"no case {name}; there are {', '.join(case.name for case in CASES)}")
    return found[0]
