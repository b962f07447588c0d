"""Losses per target, in nats, and the sums from which every mean is made.

Shapes: V classes or vocabulary; `...` any leading axes (B for classifiers, B T for language models).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

IGNORE = -1  # a target that counts nowhere: not in the sum, not in the denominator


class Sums(NamedTuple):
    """Scalars that add up over micro-steps, devices and batches; a mean is one division at the end."""

    nats: jax.Array  # summed loss
    targets: jax.Array  # targets that count, int32
    correct: jax.Array  # of these, predicted rightly, int32
    byte_nats: jax.Array  # summed loss of targets that stand for text
    bytes: jax.Array  # UTF-8 bytes these stand for, int32


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits (..., V), targets (...) int -> nats (...): logsumexp(logits) - logits[target], 0 where ignored.

    Computed in float32 or wider.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    at_target = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == IGNORE, 0, jax.nn.logsumexp(logits, axis=-1) - at_target)


def sigmoid_binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits (..., 1), targets (...) of 0 and 1 -> nats (...): log(1 + exp(-z)) with z the logit, signed by target.

    The logits are squeezed: against (..., 1) the targets would broadcast to a square.
    """
    logits = logits[..., 0].astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(targets == IGNORE, 0, jax.nn.softplus(jnp.where(targets == 1, -logits, logits)))


def loss_sums(
    logits: jax.Array,
    targets: jax.Array,
    target_bytes: jax.Array | None = None,
    cross_entropy: Callable[[jax.Array, jax.Array], jax.Array] = softmax_cross_entropy,
) -> Sums:
    """All sums of one batch. One logit means a sigmoid head, several a softmax.

    logits (..., V), targets (...) int, target_bytes (...) int or None. cross_entropy: `softmax_cross_entropy`, or the
    same with a faster derivative.
    """
    counts = targets != IGNORE
    if logits.shape[-1] == 1:
        nats = sigmoid_binary_cross_entropy(logits, targets)
        predicted = (logits[..., 0] > 0).astype(targets.dtype)
    else:
        nats = cross_entropy(logits, targets)
        predicted = jnp.argmax(logits, axis=-1).astype(targets.dtype)
    text = jnp.zeros_like(counts) if target_bytes is None else counts & (target_bytes > 0)
    return Sums(
        nats=jnp.sum(nats),
        targets=jnp.sum(counts, dtype=jnp.int32),
        correct=jnp.sum(counts & (predicted == targets), dtype=jnp.int32),
        byte_nats=jnp.sum(jnp.where(text, nats, 0)),
        bytes=jnp.sum(jnp.where(text, target_bytes, 0), dtype=jnp.int32) if target_bytes is not None else jnp.int32(0),
    )
