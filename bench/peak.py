"""The device's peak: the fastest matrix product that either framework manages on it."""

from collections.abc import Callable
from typing import Any

from bench.interleave import interleave
from bench.options import BenchOptions
from bench.process import workers

# Square matrices: size, type, and how many products make a sample.
PRODUCTS: dict[str, dict[str, Any]] = {
    "cpu": {"size": 2048, "dtype": "float32", "repeats": 3},
    "cuda": {"size": 8192, "dtype": "bfloat16", "repeats": 30},
    "tiny": {"size": 128, "dtype": "float32", "repeats": 3},
}


def prepare(side: str, spec: dict[str, Any]) -> Callable[[], str]:
    """A product of two square matrices, several times; the result is the device's name."""
    size, dtype, repeats = spec["size"], spec["dtype"], spec["repeats"]
    work: Callable[[], str]
    if side == "jax":
        import jax
        import jax.numpy as jnp

        from jax_impl import cpu

        product = jax.jit(jnp.matmul, compiler_options=cpu.compiler_options())
        x = jnp.ones((size, size), dtype)

        def work() -> str:
            for _ in range(repeats):
                y = product(x, x)
            y.block_until_ready()
            return str(jax.devices()[0].device_kind)

    else:
        import torch

        from torch_ref.processes import device

        t = torch.ones((size, size), dtype=getattr(torch, dtype), device=device())

        def work() -> str:
            for _ in range(repeats):
                u = t @ t
            float(u[0, 0])  # waits for it
            return torch.cuda.get_device_name() if t.is_cuda else "cpu"

    return work


def measure_peak(options: BenchOptions) -> tuple[dict[str, float], str]:
    """Framework -> FLOP/s of its fastest sample; and the device as JAX names it."""
    spec = PRODUCTS["tiny" if options.tiny else options.platform]
    flops = 2 * spec["size"] ** 3 * spec["repeats"]
    with workers("peak", {"jax": spec, "torch": spec}, options.platform) as sides:
        samples = interleave(sides, options.rounds)
    fastest = {name: flops / min(sample.seconds for sample in found) for name, found in samples.items()}
    return fastest, samples["jax"][0].result
