"""Faults of the loss and of the gradients made from it."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import head_loss, losses, step
from jax_impl.losses import IGNORE, Sums
from jax_impl.models.layers import Embedding, Linear
from parity.faults.fault import Fault, method, swap

loss_sums, summed_loss, micro_step = losses.loss_sums, step.summed_loss, step.micro_step


def all_targets_counted(logits: jax.Array, targets: jax.Array, *args: Any, **kwargs: Any) -> Sums:
    return loss_sums(logits, targets, *args, **kwargs)._replace(targets=jnp.int32(targets.size))


def mean_per_micro_step(*args: Any) -> Any:
    """Each micro-step counts as one target: the mean of means."""
    nats, (sums, buffers) = summed_loss(*args)
    mean = nats / sums.targets
    return mean, (sums._replace(nats=mean, targets=jnp.int32(1)), buffers)


def sum_of_means(*args: Any) -> Any:
    """The micro-steps' means are added and not divided by their number."""
    nats, (sums, buffers) = summed_loss(*args)
    mean = nats / sums.targets
    micro_steps = 2
    return mean, (sums._replace(nats=mean, targets=jnp.ones((), mean.dtype) / micro_steps), buffers)


def in_bfloat16(logits: jax.Array, targets: jax.Array) -> jax.Array:
    low = logits.astype(jnp.bfloat16)
    at_target = jnp.take_along_axis(low, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == IGNORE, 0, jax.nn.logsumexp(low, axis=-1) - at_target).astype(logits.dtype)


def in_bits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return cross_entropy(logits, targets) / np.log(2)


def not_squeezed(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """(B, 1) against (B,) gives (B, B)."""
    return jnp.mean(jax.nn.softplus(jnp.where(targets == 1, -logits, logits)), axis=0)


def naive(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Without subtracting the maximum: nothing overflows while logits stay within the dtype's range."""
    at_target = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == IGNORE, 0, jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - at_target)


def scaled_gradients(*args: Any) -> Any:
    sums, buffers, grads = micro_step(*args)
    return sums, buffers, jax.tree.map(lambda g: 2 * g, grads)


def detached(self: Any, tokens: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(self.weight[...])[tokens].astype(self.dtype)


def one_bias_gradient(self: Any, x: jax.Array) -> jax.Array:
    y = jnp.einsum("...f,of->...o", x, self.weight[...])
    if self.bias is not None:
        y = y + jnp.mean(self.bias[...]) + jax.lax.stop_gradient(self.bias[...] - jnp.mean(self.bias[...]))
    return y


cross_entropy = head_loss.one_pass_cross_entropy

FAULTS = (
    Fault(
        "ignored targets counted",
        "embedding",
        "loss",
        "masked targets are in the denominator",
        swap(loss_sums, all_targets_counted),
    ),
    Fault(
        "another ignore index",
        "embedding",
        "loss",
        "-100, Hugging Face's and torch's default, for -1",
        lambda: mock.patch.object(losses, "IGNORE", -100),
    ),
    Fault(
        "mean of means",
        "embedding",
        "loss",
        "each micro-step is averaged alone, with unequal masks (transformers PR 34191)",
        swap(summed_loss, mean_per_micro_step),
    ),
    Fault(
        "accumulation by sum",
        "embedding",
        "loss",
        "the micro-steps' losses are added, not averaged (torchtune PR 1875)",
        swap(summed_loss, sum_of_means),
    ),
    Fault(
        "cross-entropy in bfloat16",
        "embedding",
        "loss",
        "the logits are rounded before the logarithm (nanochat cbf30c8)",
        swap(cross_entropy, in_bfloat16),
    ),
    Fault("loss in bits", "linear", "loss", "logarithm to base 2", swap(cross_entropy, in_bits)),
    Fault(
        "logit not squeezed",
        "linear",
        "loss",
        "(B, 1) logits against (B,) targets broadcast to (B, B)",
        swap(losses.sigmoid_binary_cross_entropy, not_squeezed),
        flags="--head sigmoid --dataset breast_cancer",
    ),
    Fault(
        "naive softmax",
        "mlp",
        None,
        "the maximum is not subtracted before the exponential",
        swap(cross_entropy, naive),
        "nothing overflows while logits stay within the dtype's range",
    ),
    Fault(
        "gradients added, not averaged",
        "embedding",
        "gradients",
        "the logged loss is a mean, the gradient the sum over micro-steps",
        swap(micro_step, scaled_gradients),
    ),
    Fault(
        "embedding detached",
        "embedding",
        "gradients",
        "a stop_gradient on the table",
        method(Embedding, "forward", detached),
    ),
    Fault(
        "one gradient for all biases",
        "linear",
        "gradients",
        "the bias is broadcast in the wrong place of the backward pass",
        method(Linear, "forward", one_bias_gradient),
    ),
)
