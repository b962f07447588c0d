"""Time from nothing to the first finished step: import, init, compile; and again with JAX's compilation cache."""

import tempfile
from dataclasses import replace
from typing import Any

from bench import gpt_sides, step
from bench.interleave import quartiles
from bench.options import BenchOptions, Row
from bench.process import Worker

prepare = gpt_sides.prepare


def measure(options: BenchOptions, peak: float) -> list[Row]:
    """Seconds from starting Python to the loss of the first step; the cache is filled by a run before."""
    spec = next(iter((step.TINY if options.tiny else step.SIZES).values()))
    times: dict[str, list[float]] = {"jax": [], "jax, cached": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        seconds_to_first_step("jax", spec, cache)
        for _ in range(options.rounds):
            times["jax"].append(seconds_to_first_step("jax", spec, {"JAX_ENABLE_COMPILATION_CACHE": "false"}))
            times["jax, cached"].append(seconds_to_first_step("jax", spec, cache))
            times["torch"].append(seconds_to_first_step("torch", spec, {}))
    rows = []
    for side, found in times.items():
        longer = [theirs / ours for theirs, ours in zip(found, times["jax"], strict=True)]
        value, ratio = quartiles(found), quartiles(longer)
        row = Row("start to first step", side, value.median, value.low, value.high, "s")
        rows.append(
            row if side == "jax" else replace(row, ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)
        )
    return rows


def seconds_to_first_step(side: str, spec: dict[str, Any], env: dict[str, str]) -> float:
    with Worker("startup", side, spec, env) as worker:
        return worker.wait()
