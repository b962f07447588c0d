"""The train step and the eval step: forward, backward, clip, step each optimizer, zero_grad.

Shapes: A micro-steps, B batch, the rest as in the models.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torch_ref.losses import IGNORE, Sums, loss_sums
from torch_ref.models import forward
from torch_ref.optimizer import clip_by_global_norm, group_norms, set_schedule
from twinstep.config import Config

Batch = dict[str, torch.Tensor]


def micro_step(model: nn.Module, micro_batch: Batch, targets: torch.Tensor) -> Sums:
    """Forward and backward: the sums of one micro-batch; adds the gradient of its share of the mean to `.grad`.

    targets: how many the step has on all processes. DistributedDataParallel averages gradients over the processes,
    so the loss is multiplied by their number.
    """
    sums = loss_sums(forward(model, micro_batch), micro_batch["targets"])
    processes = dist.get_world_size() if dist.is_initialized() else 1
    (processes * sums.nats / targets).backward()
    return sums


def summed_gradients(model: nn.Module, batch: Batch, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss of a batch of A micro-batches, each tensor (A, B, ...), over `targets`; gradients in `.grad`."""
    micro_steps = batch["targets"].shape[0]
    loss = torch.zeros((), dtype=next(model.parameters()).dtype, device=targets.device)
    for number in range(micro_steps):
        micro_batch = {name: tensor[number] for name, tensor in batch.items()}
        last = number == micro_steps - 1
        # Each process accumulates its gradients, and the last backward averages them over all.
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            sums = micro_step(model, micro_batch, targets)
        loss += (sums.nats / targets).detach()
    return loss


def train_step(
    config: Config,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    batch: Batch,
) -> dict[str, Any]:
    """One optimizer step on a batch of A micro-batches, each tensor (A, B, ...); `model` is in train mode.

    The loss is the mean over all targets of the step that count, of all processes. Metrics: loss (nats), grad_norm
    (before clipping), learning_rate (the matrices'), leaf_norms (one per parameter, to name a tensor that is not
    finite), and those of `group_norms`.
    """
    learning_rate = set_schedule(config, optimizers, step)
    targets = (batch["targets"] != IGNORE).sum()
    if dist.is_initialized():
        dist.all_reduce(targets)
    loss = summed_gradients(model, batch, targets.clamp(min=1))
    if dist.is_initialized():
        dist.all_reduce(loss)

    leaf_norms = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    grad_norm = clip_by_global_norm(model, config.optimizer.clip_norm)
    metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "leaf_norms": leaf_norms}
    before = {p: p.detach().clone() for p in model.parameters()}
    for optimizer in optimizers:
        optimizer.step()
    metrics |= group_norms(optimizers, before)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return metrics


@torch.no_grad()
def eval_step(model: nn.Module, batch: Batch) -> Sums:
    """The sums of one batch (B, ...); `model` is in eval mode."""
    sums = loss_sums(forward(model, batch), batch["targets"], batch.get("target_bytes"))
    if dist.is_initialized():
        for tensor in sums:
            dist.all_reduce(tensor)
    return sums
