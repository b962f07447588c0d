"""Time of an optimizer step of the GPT, at the two sizes that the targets name."""

from typing import Any

from bench import gpt_sides
from bench.interleave import interleave, per_step
from bench.options import BenchOptions, Row
from bench.process import workers
from bench.rows import rows_of
from twinstep.flops import matrix_flops_per_step

SIZES = {
    "gpt step, d 256": {
        "depth": 4, "d_model": 256, "head_dim": 128, "vocab_size": 256, "sequence_len": 256, "batch_size": 8,
    },
    "gpt step, d 384": {
        "depth": 6, "d_model": 384, "head_dim": 128, "vocab_size": 4096, "sequence_len": 512, "batch_size": 4,
    },
}  # fmt: skip
TINY = {
    "gpt step, d 32": {
        "depth": 1, "d_model": 32, "head_dim": 16, "vocab_size": 64, "sequence_len": 16, "batch_size": 2,
    },
}  # fmt: skip

STEPS = 3  # in one sample: in training a step follows a step, without another process in between


def prepare(side: str, spec: dict[str, Any]) -> gpt_sides.Work:
    """The function that takes STEPS steps and waits for the loss of each."""
    step = gpt_sides.prepare(side, spec)
    return lambda: [step() for _ in range(STEPS)]


def measure(options: BenchOptions, peak: float) -> list[Row]:
    """A row for each side and size."""
    rows = []
    for work, spec in (TINY if options.tiny else SIZES).items():
        names = gpt_sides.sides(options.upstream, compiled=not options.tiny)
        with workers("step", {side: {**spec, "upstream": options.upstream} for side in names}) as sides:
            samples = per_step(interleave(sides, options.rounds), dict.fromkeys(names, STEPS))
        flops = matrix_flops_per_step(gpt_sides.config_of(spec), spec["sequence_len"])
        rows += rows_of(work, samples, "ms", lambda sample: 1e3 * sample.seconds, flops / peak)
    return rows
