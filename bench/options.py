"""What the command line asks for, what a measurement is given, and what it gives back."""

import math
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from twinstep.config import COUNT, Bound, check_bounds
from twinstep.config.bounds import POSITIVE


@dataclass(frozen=True)
class BenchOptions:
    """Measure jax_impl beside torch_ref on this machine's CPU or on its one NVIDIA GPU."""

    platform: Literal["cpu", "cuda"] = "cpu"
    """Where both frameworks work. On cuda: sizes of a GPU, in bfloat16."""
    only: str | None = None
    """Names of measurements separated by commas; all when left out."""
    pairs: int | None = None
    """Rounds in which each side works once; 5 when left out, 1 with --tiny."""
    json: str | None = None
    """File for all figures as JSON; a picture of the same name but for .png is drawn beside it."""
    upstream: str | None = None
    """Your own checkout of karpathy/nanochat (November 2025, commit 16788ee), to be measured as it is."""
    minutes: float | None = None
    """Budget of time: rounds end with it, and what it leaves no time for is named instead of measured."""
    tiny: bool = False
    """The smallest sizes and the fewest sides: measures nothing, but shows in less than a minute that all runs."""

    BOUNDS: ClassVar[dict[str, Bound]] = {"pairs": COUNT, "minutes": POSITIVE}

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def rounds(self) -> int:
        return self.pairs or (1 if self.tiny else 5)


@dataclass(frozen=True)
class Bench:
    """One run of the bench: what was asked for, how fast the device is, and when it must end."""

    options: BenchOptions
    peak: float  # FLOP/s of the largest matrix product measured in this run
    chip_flops: float | None = None  # FLOP/s of the device by its maker's data sheet; None for a CPU or an unknown one
    deadline: float = math.inf  # on the clock of time.monotonic

    @property
    def on_gpu(self) -> bool:
        return self.options.platform == "cuda"

    def check_time(self, gpu_seconds: float = 0) -> None:
        """Raises OutOfTimeError where the budget is spent, or has not as many seconds left as a GPU's sizes need."""
        needed = gpu_seconds if self.on_gpu and not self.options.tiny else 0
        if time.monotonic() + needed > self.deadline:
            raise OutOfTimeError


class OutOfTimeError(Exception):
    """The budget leaves no time for this measurement."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a side's figure, beside the first side's of the same work."""

    work: str
    side: str
    value: float  # median
    low: float  # quartiles
    high: float
    unit: str
    ratio: float | None = None  # how many times better jax_impl is; None for jax_impl itself
    ratio_low: float | None = None
    ratio_high: float | None = None
    peak_share: float | None = None  # matrix FLOP/s over the peak measured in the same run
    others: float | None = None  # cores that other processes kept busy, median
    extra: dict[str, Any] = field(default_factory=dict)
