"""Where the step runs: one process, or DistributedDataParallel over those that torchrun started."""

import gc
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from twinstep.config import Config, check_shards
from twinstep.errors import UserError


def set_precision(config: Config) -> None:
    """Process-wide precision of float32 products on accelerators."""
    precision = config.train.matmul_precision
    torch.set_float32_matmul_precision("medium" if precision == "default" else precision)


def initialize(config: Config) -> None:
    """Join the processes that torchrun started, if it did; call before anything else of this file.

    Raises UserError for flags that belong to jax_impl.
    """
    d = config.devices
    if (d.coordinator, d.num_processes, d.process_id) != (None, None, None):
        raise UserError(
            "--coordinator, --num-processes and --process-id are jax_impl's; torch_ref is started on several hosts by "
            "torchrun --nnodes N --nproc-per-node M -m torch_ref.train ..."
        )
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def choose_mode(config: Config) -> str:
    """What `--parallel auto` means here: "jit" for one process, "pmap" for data parallel under torchrun.

    Raises UserError for a mode that is not there.
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


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def wrap(model: nn.Module, mode: str) -> nn.Module:
    """The model that the step calls. Under DDP the last backward of a step averages gradients over the processes."""
    if mode == "jit":
        return model
    return DistributedDataParallel(model, forward_sync_buffers=False)  # BatchNorm's are the same on all already


def close() -> None:
    """Leave the process group, if there is one, when all have come to this.

    A DistributedDataParallel still held by a cycle of references keeps the group's threads alive until Python ends,
    and one process in ten then ended by "terminate called without an active exception".
    """
    if dist.is_initialized():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def shard() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def text_of_first(text: str) -> str:
    """The first process's text (at most 4,096 bytes), on every process."""
    if not dist.is_initialized():
        return text
    padded = torch.zeros(4096, dtype=torch.uint8)
    encoded = torch.tensor(list(text.encode()[: len(padded)]), dtype=torch.uint8)
    padded[: len(encoded)] = encoded
    padded = padded.to(device())
    dist.broadcast(padded, 0)
    return bytes(padded.tolist()).rstrip(b"\0").decode()


def agree(number: int | None) -> int | None:
    """The largest number that any process gives, or None; all processes must ask at the same step."""
    if not dist.is_initialized():
        return number
    largest = torch.tensor(number or 0, device=device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest) or None


def describe_devices(mode: str) -> str:
    """One line for the head of a run."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"
    return f"{shard()[1]} x {kind}, {mode}"


def peak_flops(config: Config) -> float | None:
    """FLOP/s that all processes together could reach: measured on a CPU, None on a GPU."""
    return None if torch.cuda.is_available() else measured_matmul_flops(config)


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
