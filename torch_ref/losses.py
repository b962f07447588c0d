"""Losses per target, in nats, and the sums from which every mean is made.

Shapes: V classes or vocabulary; `...` any leading axes (B for classifiers, B T for language models).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

IGNORE = -1  # a target that counts nowhere: not in the sum, not in the denominator


class Sums(NamedTuple):
    """Scalars that add up over micro-steps, devices and batches; a mean is one division at the end."""

    nats: torch.Tensor  # summed loss
    targets: torch.Tensor  # targets that count, int64
    correct: torch.Tensor  # of these, predicted rightly, int64
    byte_nats: torch.Tensor  # summed loss of targets that stand for text
    bytes: torch.Tensor  # UTF-8 bytes these stand for, int64


def softmax_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (..., V), targets (...) int -> nats (...): logsumexp(logits) - logits[target], 0 where ignored.

    Computed in float32 or wider.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORE, reduction="none"
    )
    return nats.view(targets.shape)


def sigmoid_binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (..., 1), targets (...) of 0 and 1 -> nats (...): log(1 + exp(-z)) with z the logit, signed by target.

    The logits are squeezed: against (..., 1) the targets would broadcast to a square.
    """
    logits = logits[..., 0].to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.binary_cross_entropy_with_logits(logits, (targets == 1).to(logits.dtype), reduction="none")
    return torch.where(targets == IGNORE, 0, nats)


def loss_sums(logits: torch.Tensor, targets: torch.Tensor, target_bytes: torch.Tensor | None = None) -> Sums:
    """All sums of one batch. One logit means a sigmoid head, several a softmax.

    logits (..., V), targets (...) int, target_bytes (...) int or None.
    """
    counts = targets != IGNORE
    if logits.shape[-1] == 1:
        nats = sigmoid_binary_cross_entropy(logits, targets)
        predicted = (logits[..., 0] > 0).to(targets.dtype)
    else:
        nats = softmax_cross_entropy(logits, targets)
        predicted = torch.argmax(logits, dim=-1).to(targets.dtype)
    no_bytes = torch.zeros_like(targets) if target_bytes is None else target_bytes
    text = counts & (no_bytes > 0)
    return Sums(
        nats=nats.sum(),
        targets=counts.sum(),
        correct=(counts & (predicted == targets)).sum(),
        byte_nats=torch.where(text, nats, 0).sum(),
        bytes=torch.where(text, no_bytes, 0).sum(),
    )
