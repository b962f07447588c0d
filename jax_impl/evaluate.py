"""Loss, bits per byte and accuracy on held-out data, as ratios of sums."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jax_impl.losses import Sums
from jax_impl.step import Batch


def evaluate(eval_step: Callable[[Batch], Sums], batches: Iterable[Batch]) -> Sums:
    """Sums over all batches, added on the host in float64; `eval_step` runs in eval mode."""
    totals: Any = np.zeros(len(Sums._fields))
    for batch in batches:
        totals += [np.asarray(value).item() for value in eval_step(batch)]
    return Sums(*totals.tolist())


def metrics(sums: Any) -> dict[str, float]:
    """val_loss (nats per target), then val_bpb (bits per UTF-8 byte) for text or val_accuracy for tables.

    Bits per byte leaves out special tokens, which stand for no text, from both sums
    (karpathy/nanochat, nanochat/loss_eval.py).
    """
    result = {"val_loss": sums.nats / max(sums.targets, 1)}
    if sums.bytes:
        result["val_bpb"] = sums.byte_nats / (math.log(2) * sums.bytes)
    else:
        result["val_accuracy"] = sums.correct / max(sums.targets, 1)
    return result
