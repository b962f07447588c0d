"""Time of an optimizer step of the GPT, at the two sizes that the targets name."""

from bench import gpt
from bench.options import BenchOptions, Row
from bench.pairs import interleave
from bench.process import workers
from bench.rows import rows_of
from bench.upstream import check_checkout
from recipe.flops import matrix_flops_per_step

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

prepare = gpt.prepare


def measure(options: BenchOptions, peak: float) -> list[Row]:
    """A row for each side and size."""
    if options.upstream is not None:
        check_checkout(options.upstream)
    rows = []
    for work, spec in (TINY if options.tiny else SIZES).items():
        names = gpt.sides(options.upstream, compiled=not options.tiny)
        with workers("gpt_step", {side: {**spec, "upstream": options.upstream} for side in names}) as sides:
            samples = interleave(sides, options.rounds)
        flops = matrix_flops_per_step(gpt.config_of(spec), spec["sequence_len"])
        rows += rows_of(work, samples, "ms", lambda sample: 1e3 * sample.seconds, flops / peak)
    return rows
