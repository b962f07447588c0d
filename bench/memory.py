"""Peak memory of a step on a CPU with a large vocabulary, from the system's own count of the process (Linux)."""

import gc
from pathlib import Path
from typing import Any

from bench import gpt_sides
from bench.options import Bench, Row
from bench.process import Worker

MODEL = {"depth": 4, "d_model": 256, "head_dim": 128, "vocab_size": 32768, "sequence_len": 1024, "batch_size": 4}
TINY = {"depth": 1, "d_model": 32, "head_dim": 16, "vocab_size": 64, "sequence_len": 16, "batch_size": 1}
STEPS = 4


def prepare(side: str, spec: dict[str, Any]) -> Any:
    """After a first step, which compiles, the peak is reset; a few more steps show the step's own."""
    step = gpt_sides.prepare(side, spec).step

    def work() -> dict[str, float]:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: proc(5)
        for _ in range(STEPS):
            float(step())
        return {name: megabytes(name) for name in ("VmHWM", "VmRSS")}

    return work


def megabytes(name: str) -> float:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def measure(bench: Bench) -> list[Row]:
    """One row for each framework; there is no chance in it, so one round is enough. None without Linux's /proc."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    spec = TINY if bench.options.tiny else MODEL
    work = f"peak memory, V {spec['vocab_size']}, T {spec['sequence_len']}"
    found = {}
    for side in ("jax", "torch"):
        with Worker("memory", side, spec) as worker:
            worker.wait()
            found[side] = worker.work().result
    rows = []
    for side, memory in found.items():
        value = memory["VmHWM"]
        ratio = None if side == "jax" else value / found["jax"]["VmHWM"]
        rows.append(Row(work, side, value, value, value, "MB", ratio, ratio, ratio, extra=memory))
    return rows
