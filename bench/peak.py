"""The machine's peak: the fastest matrix product that either framework manages on it."""

from typing import Any

from bench.interleave import interleave
from bench.process import workers

SIZE, TINY_SIZE = 2048, 128


def prepare(side: str, spec: dict[str, Any]) -> Any:
    """A float32 product of two square matrices, several times."""
    size, repeats = spec["size"], spec["repeats"]
    if side == "jax":
        import jax
        import jax.numpy as jnp

        from jax_impl import cpu

        product = jax.jit(jnp.matmul, compiler_options=cpu.compiler_options())
        x = jnp.ones((size, size), jnp.float32)

        def work() -> None:
            for _ in range(repeats):
                product(x, x).block_until_ready()

    else:
        import torch

        t = torch.ones((size, size))

        def work() -> None:
            for _ in range(repeats):
                t @ t

    return work


def measure_peak(pairs: int, tiny: bool) -> dict[str, float]:
    """Framework -> FLOP/s of its fastest sample."""
    spec = {"size": TINY_SIZE if tiny else SIZE, "repeats": 3}
    flops = 2 * spec["size"] ** 3 * spec["repeats"]
    with workers("peak", {"jax": spec, "torch": spec}) as sides:
        samples = interleave(sides, pairs)
    return {name: flops / min(sample.seconds for sample in found) for name, found in samples.items()}
