"""Time of an optimizer step of the GPT, and on a GPU its memory, at the sizes that the targets name."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from bench import gpt_sides
from bench.interleave import interleave, per_step
from bench.options import Bench, Row
from bench.process import NoMemoryError, Sample, workers
from bench.rows import rows_of
from twinstep.flops import flops_per_token, matrix_flops_per_step

Spec = dict[str, Any]

SIZES: dict[str, Spec] = {
    "gpt step, d 256": {
        "depth": 4, "d_model": 256, "head_dim": 128, "vocab_size": 256, "sequence_len": 256, "batch_size": 8,
    },
    "gpt step, d 384": {
        "depth": 6, "d_model": 384, "head_dim": 128, "vocab_size": 4096, "sequence_len": 512, "batch_size": 4,
    },
}  # fmt: skip
ON_GPU: Spec = {
    "head_dim": 128, "vocab_size": 32768, "sequence_len": 2048, "batch_size": 32, "dtype": "bfloat16",
    "matmul_precision": "default",
}  # fmt: skip
GPU_SIZES: dict[str, Spec] = {
    "gpt step, depth 12": {"depth": 12, "d_model": 768, **ON_GPU},
    "gpt step, depth 4": {"depth": 4, "d_model": 256, **ON_GPU},
}
TINY: dict[str, Spec] = {
    "gpt step, d 32": {
        "depth": 1, "d_model": 32, "head_dim": 16, "vocab_size": 64, "sequence_len": 16, "batch_size": 2,
    },
}  # fmt: skip

STEPS = 3  # in one sample: in training a step follows a step, without another process in between
GPU_SECONDS = 60  # that the sides of one size need at least: three to four times starting and compiling


def prepare(side: str, spec: Spec) -> Callable[[], dict[str, float]]:
    """The function that takes STEPS steps and waits for the last.

    On a GPU a step goes before, which is not timed: the sides share its memory, and give it back after each sample.
    """
    work = gpt_sides.prepare(side, spec)
    on_gpu = work.peak_bytes() > 0

    def sample() -> dict[str, float]:
        if on_gpu:
            float(work.step())
        start = time.perf_counter()
        losses = [work.step() for _ in range(STEPS)]
        loss = float(losses[-1])
        seconds = time.perf_counter() - start
        work.release()
        return {"loss": loss, "seconds": seconds, "peak_bytes": work.peak_bytes()}

    return sample


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each side and size."""
    options = bench.options
    for work, spec in (TINY if options.tiny else GPU_SIZES if bench.on_gpu else SIZES).items():
        bench.check_time(GPU_SECONDS)
        names = gpt_sides.sides(options.upstream, compiled=not options.tiny)
        fitting, samples = samples_that_fit(bench, spec, names)
        config = gpt_sides.config_of(fitting)
        T = fitting["sequence_len"]
        at_peak = matrix_flops_per_step(config, T) / bench.peak
        for row in rows_of(work, samples, "ms", lambda sample: 1e3 * sample.seconds, at_peak):
            speed = 1e3 * config.batch_size * T / row.value
            row.extra.update(spec=fitting, tokens_per_second=speed)
            if bench.chip_flops:
                row.extra["mfu"] = speed * flops_per_token(config.model, T) / bench.chip_flops
            yield row
        if bench.on_gpu:
            yield from memory_rows(work.replace("gpt step", "peak memory"), samples)


def samples_that_fit(bench: Bench, spec: Spec, names: list[str]) -> tuple[Spec, dict[str, list[Sample]]]:
    """The samples of all sides, with as many of the sequences as fit into the memory of the device beside each other.

    They are halved until they do. Raises UserError where one sequence does not.
    """
    options = bench.options
    specs = {side: {**spec, "upstream": options.upstream} for side in names}
    try:
        with workers("step", specs, options.platform) as sides:
            found = interleave(sides, options.rounds, deadline=bench.deadline)
    except NoMemoryError:
        if spec["batch_size"] == 1:
            raise
        bench.check_time(GPU_SECONDS)
        return samples_that_fit(bench, {**spec, "batch_size": spec["batch_size"] // 2}, names)
    timed = {side: [s._replace(seconds=s.result["seconds"]) for s in samples] for side, samples in found.items()}
    return spec, per_step(timed, dict.fromkeys(names, STEPS))


def memory_rows(work: str, samples: dict[str, list[Sample]]) -> Iterator[Row]:
    """What a GPU's allocator had handed out at most; there is no chance in it."""
    peaks = {side: max(sample.result["peak_bytes"] for sample in of_side) for side, of_side in samples.items()}
    for side, peak in peaks.items():
        row = Row(work, side, peak / 1e9, peak / 1e9, peak / 1e9, "GB")
        ratio = peak / peaks["jax"]
        yield row if side == "jax" else replace(row, ratio=ratio, ratio_low=ratio, ratio_high=ratio)
