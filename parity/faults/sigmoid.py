"""Faults of the head of one logit."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_impl import losses
from jax_impl.losses import IGNORE
from parity.faults.fault import Fault, swap

cross_entropy, loss_sums = losses.sigmoid_binary_cross_entropy, losses.loss_sums

SIGMOID = "--head sigmoid --dataset breast_cancer"


def binary(nats: Any) -> Any:
    """Another cross-entropy of one logit: `nats(logit, targets)`."""

    def faulty(logits: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.where(targets == IGNORE, 0, nats(logits[..., 0], targets))

    return swap(cross_entropy, faulty)


def clipped(logit: jax.Array, targets: jax.Array) -> jax.Array:
    probability = jnp.clip(jax.nn.sigmoid(logit), 1e-7, 1 - 1e-7)
    return -jnp.where(targets == 1, jnp.log(probability), jnp.log(1 - probability))


def with_eps(logit: jax.Array, targets: jax.Array) -> jax.Array:
    probability = jax.nn.sigmoid(logit)
    return -jnp.log(jnp.where(targets == 1, probability, 1 - probability) + 1e-7)


def unstable(logit: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.log(1 + jnp.exp(logit)) - targets * logit


def twice_sigmoid(logit: jax.Array, targets: jax.Array) -> jax.Array:
    probability = jax.nn.sigmoid(logit)
    return jax.nn.softplus(jnp.where(targets == 1, -probability, probability))


def counting(predicted: Any) -> Any:
    """Other predictions from one logit: `predicted(logit)`."""

    def faulty(logits: jax.Array, targets: jax.Array, *args: Any, **kwargs: Any) -> Any:
        sums = loss_sums(logits, targets, *args, **kwargs)
        right = (targets != IGNORE) & (predicted(logits[..., 0]) == targets)
        return sums._replace(correct=jnp.sum(right, dtype=jnp.int32))

    return swap(loss_sums, faulty)


FAULTS = (
    Fault(
        "sigmoid's sign",
        "linear",
        "loss",
        "the logit is signed by the other class",
        binary(lambda logit, targets: jax.nn.softplus(jnp.where(targets == 1, logit, -logit))),
        flags=SIGMOID,
    ),
    Fault(
        "sigmoid twice",
        "linear",
        "loss",
        "probabilities into a loss that takes logits (BCELoss for BCEWithLogitsLoss, and the reverse)",
        binary(twice_sigmoid),
        flags=SIGMOID,
    ),
    Fault(
        "eps in the logarithm",
        "linear",
        "loss",
        "log(p + 1e-7)",
        binary(with_eps),
        flags=SIGMOID,
    ),
    Fault(
        "threshold of 0.5 on the logit",
        "linear",
        "evaluation",
        "the threshold of a probability",
        counting(lambda logit: (logit > 0.5).astype(jnp.int32)),
        flags=f"{SIGMOID} --eval-batches 0",
    ),
    Fault(
        "argmax of one logit",
        "linear",
        "evaluation",
        "the class is always 0",
        counting(lambda logit: jnp.zeros_like(logit, jnp.int32)),
        flags=SIGMOID,
    ),
    Fault(
        "log(1 + exp)",
        "linear",
        None,
        "the logarithm of a sigmoid without care for large logits",
        binary(unstable),
        "logits stay small here; exp overflows at 709 in float64, at 88 in float32",
        flags=SIGMOID,
    ),
    Fault(
        "probabilities clipped",
        "linear",
        None,
        "the probability is held within 1e-7 of 0 and 1 before the logarithm",
        binary(clipped),
        "no logit is as large as 16 here, where it would act",
        flags=SIGMOID,
    ),
)
