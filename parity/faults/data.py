"""Faults of the input: what the JAX side reads."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from jax_impl import input
from parity.faults.fault import Fault, swap

Batch = dict[str, np.ndarray]


def altered_batches(change: Callable[[Batch], Batch]) -> Any:
    train_batches = input.train_batches

    def faulty(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        for batch in train_batches(*args, **kwargs):
            yield {**batch, **change(batch)}

    return swap(train_batches, faulty)


def shifted_again(batch: Batch) -> Batch:
    end = np.full_like(batch["targets"][..., :1], -1)
    return {"targets": np.concatenate([batch["targets"][..., 1:], end], axis=-1)}


def mask_lost(batch: Batch) -> Batch:
    return {"targets": np.maximum(batch["targets"], 0)}


def not_scaled(batch: Batch) -> Batch:
    return {"inputs": batch["inputs"] * 16}


def other_order() -> Any:
    train_batches = input.train_batches

    def faulty(source: Any, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        return train_batches(replace(source, seed=source.seed + 1), *args, **kwargs)

    return swap(train_batches, faulty)


def last_batch_dropped() -> Any:
    eval_batches = input.eval_batches

    def faulty(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        return iter(list(eval_batches(*args, **kwargs))[:-1])

    return swap(eval_batches, faulty)


FAULTS = (
    Fault(
        "targets shifted twice",
        "embedding",
        "data",
        "shifted by the stream and again by the model, as Hugging Face's models do",
        altered_batches(shifted_again),
    ),
    Fault("mask of targets lost", "embedding", "data", "ignored targets arrive as class 0", altered_batches(mask_lost)),
    Fault(
        "features not scaled",
        "linear",
        "data",
        "the pixels are divided by 16 on one side only",
        altered_batches(not_scaled),
    ),
    Fault("another shuffle", "mlp", "data", "the order of the examples comes from another generator", other_order()),
    Fault(
        "last batch dropped",
        "linear",
        "evaluation",
        "the incomplete last batch of the validation set is left out",
        last_batch_dropped(),
        flags="--eval-batches 0",
    ),
)
