"""A run of several processes under torchrun: how they find each other, agree, and end together.

With one process everything here returns at once.
"""

import gc
import os

import torch
import torch.distributed as dist

from twinstep.config import Config
from twinstep.errors import UserError

TEXT_BYTES = 4096  # longest text that processes tell each other


def initialize(config: Config) -> None:
    """Join the processes that torchrun started, if it did; call before anything touches a device.

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


def several() -> bool:
    """True in a run that torchrun started."""
    return dist.is_initialized()


def shard() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if several() else (0, 1)


def text_of_first(text: str) -> str:
    """The first process's text (at most TEXT_BYTES), on every process."""
    if not several():
        return text
    padded = torch.zeros(TEXT_BYTES, dtype=torch.uint8)
    encoded = torch.tensor(list(text.encode()[:TEXT_BYTES]), dtype=torch.uint8)
    padded[: len(encoded)] = encoded
    padded = padded.to(device())
    dist.broadcast(padded, 0)
    return bytes(padded.tolist()).rstrip(b"\0").decode()


def agreed(own: int | None) -> int | None:
    """The signal on which all processes act at the same step, or None: the largest that any of them received."""
    if not several():
        return own
    largest = torch.tensor(own or 0, device=device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest) or None


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def close() -> None:
    """Destroy the process group, if there is one, once all processes have called this.

    A DistributedDataParallel still held by a cycle of references keeps the group's threads alive until Python ends,
    and one process in ten then ended by "terminate called without an active exception".
    """
    if several():
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
