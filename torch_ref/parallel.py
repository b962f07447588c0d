"""Where the step runs: one process, or DistributedDataParallel over those that torchrun started."""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recipe.config import Config
from recipe.errors import UserError


def set_precision(config: Config) -> None:
    """Process-wide precision of float32 products on accelerators."""
    torch.set_float32_matmul_precision("medium" if config.train.matmul_precision == "default" else config.train.matmul_precision)


def choose_mode(config: Config) -> str:
    """"jit" for one process, "pmap" for data parallel under torchrun: the names of the JAX side.

    Raises UserError for a mode that is not there.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    mode = config.devices.parallel
    if mode == "auto":
        mode = "jit" if processes == 1 else "pmap"
    if mode == "fsdp":
        raise UserError("--parallel fsdp is only in jax_impl; pass --parallel pmap (DistributedDataParallel)")
    if mode == "jit" and processes > 1:
        raise UserError(f"--parallel jit is one process, but torchrun started {processes}; pass --parallel pmap")
    if mode == "pmap" and "RANK" not in os.environ:
        raise UserError("--parallel pmap needs torchrun: torchrun --nproc-per-node N -m torch_ref.train ...")
    micro_batch = config.batch_size // config.train.accumulation
    if micro_batch % processes:
        raise UserError(
            f"--batch-size {config.batch_size} / --accumulation {config.train.accumulation} = {micro_batch} "
            f"is not divisible by {processes} processes; pass a multiple of {processes * config.train.accumulation}"
        )
    return mode


def wrap(model: nn.Module, mode: str) -> nn.Module:
    """The model that the step calls. Under DDP each backward averages gradients over the processes."""
    if mode == "jit":
        return model
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return DistributedDataParallel(model)


def shard() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def describe_devices(mode: str) -> str:
    """One line for the head of a run."""
    return f"{shard()[1]} x cpu ({torch.get_num_threads()} threads), {mode}"


def measured_matmul_flops(config: Config, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products in the compute type."""
    x = torch.ones((size, size), dtype=getattr(torch, config.train.dtype))
    x @ x
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
