"""Where the step runs: one process, or DistributedDataParallel over those that torchrun started."""

import os
import shutil
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_ref.processes import shard
from twinstep.chips import chip_of
from twinstep.config import Config, check_shards
from twinstep.errors import UserError


def set_precision(config: Config) -> None:
    """Process-wide precision of float32 products on accelerators.

    JAX's default on a GPU is TF32, which torch calls high; its medium rounds to bfloat16, on some CPUs too.
    """
    precision = config.train.matmul_precision
    torch.set_float32_matmul_precision("high" if precision == "default" else precision)


def choose_mode(config: Config) -> str:
    """What `--parallel auto` means here: "jit" for one process, "pmap" for data parallel under torchrun.

    Raises UserError for a mode that cannot run here.
    """
    processes = shard()[1]
    mode = config.devices.parallel
    if mode == "auto":
        mode = "pmap" if dist.is_initialized() else "jit"
    if mode == "fsdp":
        raise UserError("--parallel fsdp is only in jax_impl; pass --parallel pmap (DistributedDataParallel)")
    if mode == "jit" and processes > 1:
        raise UserError(f"--parallel jit is one process, but torchrun started {processes}; pass --parallel pmap")
    if mode == "pmap" and not dist.is_initialized():
        raise UserError("--parallel pmap needs torchrun: torchrun --nproc-per-node N -m torch_ref.train ...")
    check_shards(config.batch_size, config.train.accumulation, processes, "processes")
    return mode


def wrap(config: Config, model: nn.Module, mode: str) -> nn.Module:
    """The model that the step calls, compiled under --compile.

    Under DDP the last backward of a step averages gradients over the processes. Raises UserError where torch.compile
    has no C++ compiler to call.
    """
    wrapped: Any = model
    if config.devices.compile:
        if not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UserError("--compile needs a C++ compiler, and there is no g++ here; install one, or leave it out")
        wrapped = torch.compile(model, dynamic=False)
    if mode == "jit":
        return wrapped
    return DistributedDataParallel(wrapped, forward_sync_buffers=False)  # BatchNorm keeps them equal


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
