"""How a step's time grows with T, depth, V and batch, beside what the count of operations says; and compiling."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bench import gpt_sides
from bench.interleave import interleave, quartiles
from bench.options import Bench, Row
from bench.process import Sample, workers
from twinstep.flops import matrix_flops_per_step

BASE = {"depth": 4, "d_model": 128, "head_dim": 64, "vocab_size": 256, "sequence_len": 256, "batch_size": 4}
AXES = {
    "sequence_len": (128, 256, 512, 1024, 2048, 4096),
    "depth": (2, 4, 8, 16),
    "vocab_size": (256, 1024, 4096, 16384, 65536),
    "batch_size": (1, 2, 4, 8, 16),
}
TINY_BASE = {"depth": 1, "d_model": 32, "head_dim": 16, "vocab_size": 64, "sequence_len": 16, "batch_size": 1}
TINY_AXES = {"depth": (1, 2)}


def prepare(side: str, spec: dict[str, Any]) -> Any:
    """A step; for JAX its result is the time that tracing and compiling took."""
    import time

    start = time.perf_counter()
    step = gpt_sides.prepare(side, spec).step
    to_first_step = time.perf_counter() - start

    def work() -> float:
        float(step())
        return to_first_step

    return work


def measure(bench: Bench) -> Iterator[Row]:
    """For each axis and side a row of milliseconds per size, then one with the slope of log time over log size."""
    base, axes = (TINY_BASE, TINY_AXES) if bench.options.tiny else (BASE, AXES)
    for axis, sizes in axes.items():
        bench.check_time()
        found: dict[str, list[list[Sample]]] = {"jax": [], "torch": []}
        flops = []
        for size in sizes:
            spec = {**base, axis: size, **({"batch_size": 1} if axis == "sequence_len" else {})}
            flops.append(float(matrix_flops_per_step(gpt_sides.config_of(spec), spec["sequence_len"])))
            with workers("growth", {"jax": spec, "torch": spec}, together=bench.options.tiny) as sides:
                samples = interleave(sides, bench.options.rounds, warmups=1, deadline=bench.deadline)
            for side, of_side in samples.items():
                found[side].append(of_side)
        for side, by_size in found.items():
            yield from axis_rows(axis, sizes, side, by_size, flops, bench.peak)


def axis_rows(
    axis: str, sizes: tuple[int, ...], side: str, by_size: list[list[Sample]], flops: list[float], peak: float
) -> list[Row]:
    """The times at each size, the slope of their last half, where what is constant weighs least, and FLOPs' own."""
    rows, times, starts = [], [], []
    for size, samples, operations in zip(sizes, by_size, flops, strict=True):
        time = quartiles(sample.seconds for sample in samples)
        times.append(time.median)
        starts.append(float(samples[0].result))
        row = Row(f"growth, {axis} {size}", side, 1e3 * time.median, 1e3 * time.low, 1e3 * time.high, "ms",
                  peak_share=operations / time.median / peak, extra={"seconds_to_first_step": starts[-1]})  # fmt: skip
        rows.append(row)
    counted, slope = (log_slope(sizes, y) for y in (flops, times))
    extra = {"flops_slope": counted, "sizes": sizes, "seconds": times, "flops": flops}
    rows.append(Row(f"growth, slope in {axis}", side, slope, slope, slope, f"(FLOPs: {counted:.2f})", extra=extra))
    if side == "jax" and axis == "depth":
        compile_slope = log_slope(sizes, starts)
        extra = {"sizes": sizes, "seconds": starts}
        row = Row("growth, slope of compiling in depth", side, compile_slope, compile_slope, compile_slope, "")
        rows.append(replace(row, extra=extra))
    return rows


def log_slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """Least squares over the upper half of the sizes, at least two: the exponent p of values ~ sizes^p."""
    n = max(2, math.ceil(len(sizes) / 2))
    return float(np.polyfit(np.log(sizes[-n:]), np.log(values[-n:]), 1)[0])
