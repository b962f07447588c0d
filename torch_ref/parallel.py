"""Where the step runs: one process, or DistributedDataParallel over those that torchrun started."""

import os
import shutil
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_ref.processes import shard
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
