"""What a check is asked to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from twinstep.config import Config, from_dict, to_dict

Platform = Literal["cpu", "cuda", "tpu"]


@dataclass(frozen=True)
class Request:
    """What to check: `config` fixes model, data, optimizer, dtype, steps and first seed.

    seeds: runs from consecutive seeds; float32 and bfloat16 need at least eight, where one lucky rounding would make
    a ratio of errors meaningless. devices: over how many the port's step runs under pmap. checkpoint: the folder of a
    user's weights, from which every run starts instead of from the initializations. platform: where JAX runs; torch
    runs on the GPU where that is cuda and torch sees one, else on the CPU. generation: compare it too. nudge: look for
    idle numbers. Both take as long as all the rest of a small model's check.
    """

    config: Config
    seeds: int = 1
    devices: int = 1
    inits: Sequence[str] = ("nonzero", "native")
    checkpoint: str | None = None
    platform: Platform = "cpu"
    generation: bool = False
    nudge: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "config": to_dict(self.config)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Request":
        """The inverse of `to_json`."""
        return Request(**{**values, "config": from_dict(values["config"])})
