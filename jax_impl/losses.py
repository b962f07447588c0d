"""Losses per target, in nats, and the sums from which every mean is made.

Shapes: V classes or vocabulary; `...` any leading axes (B for classifiers, B T for language models).
"""

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


@jax.custom_vjp
def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits (..., V), targets (...) int -> nats (...): logsumexp(logits) - logits[target], 0 where ignored.

    Computed in float32 or wider.
    """
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array):
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    at_target = jnp.take_along_axis(wide, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    logsum = jax.nn.logsumexp(wide, axis=-1)
    return jnp.where(targets == IGNORE, 0, logsum - at_target), (logits, targets, logsum)


def _cross_entropy_backward(saved, dnats: jax.Array):
    """Probability minus one-hot, in one pass over the logits; the lookup's own rule would scatter into zeros first."""
    logits, targets, logsum = saved
    probability = jnp.exp(logits.astype(logsum.dtype) - logsum[..., None])
    one_hot = targets[..., None] == jnp.arange(logits.shape[-1])
    dlogits = jnp.where(targets == IGNORE, 0, dnats)[..., None] * (probability - one_hot)
    return dlogits.astype(logits.dtype), None


softmax_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def sigmoid_binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """logits (..., 1), targets (...) of 0 and 1 -> nats (...): log(1 + exp(-z)) with z the logit, signed by target.

    The logits are squeezed: against (..., 1) the targets would broadcast to a square.
    """
    logits = logits[..., 0].astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(targets == IGNORE, 0, jax.nn.softplus(jnp.where(targets == 1, -logits, logits)))


def loss_sums(logits: jax.Array, targets: jax.Array, target_bytes: jax.Array | None = None) -> Sums:
    """All sums of one batch. One logit means a sigmoid head, several a softmax.

    logits (..., V), targets (...) int, target_bytes (...) int or None.
    """
    counts = targets != IGNORE
    if logits.shape[-1] == 1:
        nats = sigmoid_binary_cross_entropy(logits, targets)
        predicted = (logits[..., 0] > 0).astype(targets.dtype)
    else:
        nats = softmax_cross_entropy(logits, targets)
        predicted = jnp.argmax(logits, axis=-1).astype(targets.dtype)
    text = jnp.zeros_like(counts) if target_bytes is None else counts & (target_bytes > 0)
    return Sums(
        nats=jnp.sum(nats),
        targets=jnp.sum(counts, dtype=jnp.int32),
        correct=jnp.sum(counts & (predicted == targets), dtype=jnp.int32),
        byte_nats=jnp.sum(jnp.where(text, nats, 0)),
        bytes=jnp.sum(jnp.where(text, target_bytes, 0), dtype=jnp.int32) if target_bytes is not None else jnp.int32(0),
    )
