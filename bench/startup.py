"""Time from nothing to the first finished step: import, init, compile; and again with what was compiled before."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench import gpt_sides, step
from bench.interleave import quartiles
from bench.options import Bench, Row
from bench.process import Worker

GPU_SECONDS = 80  # of one round on a GPU


def prepare(side: str, spec: dict[str, Any]) -> Any:
    """Time to the first step is the time until this returns."""
    return gpt_sides.prepare(side, {**spec, "compilation_cache": True}).step


def measure(bench: Bench) -> Iterator[Row]:
    """Seconds from starting Python to the loss of the first step. "jax, again" finds its programs in its cache."""
    sizes = step.TINY if bench.options.tiny else step.GPU_SIZES if bench.on_gpu else step.SIZES
    spec = list(sizes.values())[-1 if bench.on_gpu else 0]
    times: dict[str, list[float]] = {"jax": [], "jax, again": [], "torch": []}
    for _ in range(1 if bench.on_gpu else bench.options.rounds):  # a round takes long there, and nothing disturbs it
        bench.check_time(GPU_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            cache = {"XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": ""}
            for side in times:
                times[side].append(seconds_to_first_step(bench, side.split(",")[0], spec, cache))
    for side, found in times.items():
        longer = [theirs / ours for theirs, ours in zip(found, times["jax"], strict=True)]
        value, ratio = quartiles(found), quartiles(longer)
        row = Row("start to first step", side, value.median, value.low, value.high, "s")
        yield row if side == "jax" else replace(row, ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)


def seconds_to_first_step(bench: Bench, side: str, spec: dict[str, Any], env: dict[str, str]) -> float:
    with Worker("startup", side, spec, bench.options.platform, env) as worker:
        return worker.wait()
