"""What a run says of its devices: their kind, and how fast they could be.

FLOP/s are those of matrix products.
"""

import time

import torch

from torch_ref.processes import shard
from twinstep.chips import chip_of
from twinstep.config import Config


def describe_devices(mode: str) -> str:
    """One line for the head of a run."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"
    return f"{shard()[1]} x {kind}, {mode}"


def peak_flops(config: Config) -> float | None:
    """FLOP/s that all processes together could reach: from the table, on a CPU measured, None for an unknown kind."""
    if not torch.cuda.is_available():
        return measured_matmul_flops(config)
    chip = chip_of(torch.cuda.get_device_name())
    return None if chip is None else shard()[1] * chip.flops


def measured_matmul_flops(config: Config, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products in the compute dtype."""
    x = torch.ones((size, size), dtype=getattr(torch, config.train.dtype))
    product = torch.matmul
    product(x, x)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
