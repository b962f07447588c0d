"""What a run says of its devices: their kind, and how fast they could be.

FLOP/s are those of matrix products.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp

from twinstep.chips import chip_of
from twinstep.config import Config


def describe_devices(mode: str) -> str:
    """One line for the head of a run."""
    device: Any = jax.devices()[0]
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}){processes}, {mode}"


def peak_flops(config: Config) -> float | None:
    """FLOP/s that all devices together could reach: from the table, on a CPU measured, None for an unknown kind."""
    if jax.default_backend() == "cpu":
        return measured_matmul_flops(config) * jax.process_count()  # forced CPU devices share the machine's cores
    chip = chip_of(jax.devices()[0].device_kind)
    return None if chip is None else jax.device_count() * chip.flops


def measured_matmul_flops(config: Config, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products in the compute dtype."""
    x = jnp.ones((size, size), dtype=getattr(jnp, config.train.dtype))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
