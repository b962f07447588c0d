"""Faults of rounding: what is computed or kept in bfloat16 where the original has float32.

They show in a bfloat16 check, in which the original rounds as well, only at other places. Each rounds by
`reduce_precision`: a cast to bfloat16 and back is one that XLA may leave out.

Shapes: B batch, F features, O out features, D hidden units; in attention as in `jax_impl.models.blockwise`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_impl import losses, optimizer, step
from jax_impl.losses import Sums
from jax_impl.models import blockwise, gpt
from jax_impl.models.batch_norm import BatchNorm
from jax_impl.models.layers import Embedding, Linear
from jax_impl.models.mlp import Dropout
from parity.faults.adamw import applying
from parity.faults.fault import Fault, method, swap

apply_updates, loss_sums, micro_step = optax.apply_updates, losses.loss_sums, step.micro_step
train_step, norm_forward, dropout_forward = step.train_step, BatchNorm.forward, Dropout.forward
rotary_table, scores, softcapped = gpt.rotary_table, blockwise._scores, gpt.softcapped
clip_by_global_norm, make_transform = optimizer.clip_by_global_norm, optimizer.make_transform
LOW = "--dtype bfloat16"


def low(x: jax.Array) -> jax.Array:
    """Rounded to bfloat16, in the dtype of x."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def all_low(tree: Any) -> Any:
    return jax.tree.map(lambda x: low(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def low_norm(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    mean_square = low(jnp.mean(low(wide * wide), axis=-1, keepdims=True))
    return (wide * low(jax.lax.rsqrt(low(mean_square + gpt.RMS_NORM_EPS)))).astype(x.dtype)


def low_scores(q_BKXC: jax.Array, k_BKSC: jax.Array, first: int) -> jax.Array:
    return low(scores(q_BKXC, k_BKSC, first))


def low_sums(self: Any, x: jax.Array) -> jax.Array:
    """Each sum is rounded after every 16 of its terms."""
    weight_OF, total = self.weight[...].astype(x.dtype), jnp.zeros((), jnp.float32)
    for first in range(0, x.shape[-1], 16):
        terms = slice(first, first + 16)
        total = low(total + jnp.einsum("...f,of->...o", x[..., terms], weight_OF[:, terms],
                                       preferred_element_type=jnp.float32))  # fmt: skip
    return total.astype(x.dtype)


def low_mean(x_BF: jax.Array) -> jax.Array:
    """The mean over the batch, added up row by row and rounded after each."""
    total_F = jnp.zeros(x_BF.shape[1:], x_BF.dtype)
    for x_F in x_BF:
        total_F = low(total_F + x_F)
    return low(total_F / x_BF.shape[0])


def low_statistics(self: Any, x_BF: jax.Array) -> jax.Array:
    """Batch normalization whose mean and variance are added up in bfloat16."""
    if self.use_running_average:
        return norm_forward(self, x_BF)
    wide_BF = x_BF.astype(jnp.float32)
    mean_F = low_mean(wide_BF)
    var_F = low_mean(low(jnp.square(wide_BF - mean_F)))
    n, kept = x_BF.shape[0], self.momentum
    self.mean[...] = kept * self.mean[...] + (1 - kept) * mean_F
    self.var[...] = kept * self.var[...] + (1 - kept) * var_F * (n / (n - 1))
    y_BF = (wide_BF - mean_F) * jax.lax.rsqrt(var_F + self.epsilon) * self.scale[...] + self.bias[...]
    return y_BF.astype(x_BF.dtype)


def divided_by_rounded(self: Any, x_BD: jax.Array, mask_BD: Any = None, key: Any = None) -> jax.Array:
    """The divisor takes the dtype of x, where 0.8 is 0.80078125."""
    if mask_BD is None or self.deterministic:
        return dropout_forward(self, x_BD, mask_BD, key)
    return jnp.where(mask_BD, x_BD / (1 - self.rate), 0)


def low_softcap(x: jax.Array, cap: float) -> jax.Array:
    return low(cap * low(jnp.tanh(low(x.astype(jnp.float32) / cap))))


def low_table(config: Any, length: int) -> Any:
    return tuple(low(jnp.asarray(t)) for t in rotary_table(config, length))


def cast_before_lookup(self: Any, tokens: jax.Array) -> jax.Array:
    return self.weight[...].astype(self.dtype)[tokens]


def low_loss(*args: Any, **kwargs: Any) -> Sums:
    sums = loss_sums(*args, **kwargs)
    return sums._replace(nats=low(sums.nats), byte_nats=low(sums.byte_nats))


def low_accumulation(model: Any, params: Any, buffers: Any, batch: Any, key: jax.Array) -> Any:
    """`summed_gradients` whose running total is rounded after every micro-step."""
    totals: Any = None
    for number in range(batch["targets"].shape[0]):
        micro = jax.tree.map(lambda x, number=number: x[number], batch)
        sums, buffers, grads = micro_step(model, params, buffers, micro, jax.random.fold_in(key, number))
        totals = (sums, grads) if totals is None else jax.tree.map(jnp.add, totals, (sums, grads))
        totals = totals[0], all_low(totals[1])
    return totals[0], buffers, totals[1]


def accumulating(gradients: Any) -> Any:
    def faulty(config: Any, model: Any, optimizer: Any, state: Any, batch: Any, axis_name: Any = None) -> Any:
        return train_step(config, model, optimizer, state, batch, axis_name, gradients)

    return swap(train_step, faulty)


def low_norm_of_gradients(grads: Any, max_norm: float) -> tuple[Any, jax.Array]:
    norm = low(optax.tree.norm(grads))
    factor = jnp.minimum(1.0, max_norm / (norm + optimizer.CLIP_EPS))
    return jax.tree.map(lambda g: g * factor, grads), norm


def low_moments(algorithm: str) -> Any:
    """The optimizer of one algorithm, whose moments are rounded after every step."""

    def faulty(config: Any, group: Any, *args: Any) -> optax.GradientTransformation:
        inner = make_transform(config, group, *args)
        if group.algorithm != algorithm:
            return inner

        def update(grads: Any, state: Any, params: Any = None) -> Any:
            updates, after = inner.update(grads, state, params)
            return updates, all_low(after)

        return optax.GradientTransformation(inner.init, update)

    return swap(make_transform, faulty)


FAULTS = (
    Fault(
        "scores in bfloat16",
        "gpt",
        "activations",
        "attention scores rounded before the softmax",
        swap(scores, low_scores),
        flags=LOW,
    ),
    Fault(
        "RMSNorm in bfloat16",
        "gpt",
        "activations",
        "squares, their mean and its root rounded, for a norm in float32",
        swap(gpt.rms_norm, low_norm),
        flags=LOW,
    ),
    Fault(
        "products summed in bfloat16",
        "gpt",
        "activations",
        "the accumulator of a matrix product is rounded on the way",
        method(Linear, "forward", low_sums),
        flags=LOW,
    ),
    Fault(
        "rotary table rounded twice",
        "gpt",
        "activations",
        "to its own float32, then to the compute dtype",
        swap(rotary_table, low_table),
        flags=LOW,
    ),
    Fault(
        "softcap computed in bfloat16",
        "gpt",
        "activations",
        "logits rounded before the cap and after it, for a softcap in float32 (nanochat cbf30c8)",
        swap(softcapped, low_softcap),
        flags=LOW,
    ),
    Fault(
        "BatchNorm statistics in bfloat16",
        "mlp",
        "activations",
        "mean and variance of the batch added up in bfloat16",
        method(BatchNorm, "forward", low_statistics),
        flags=LOW,
    ),
    Fault(
        "divisor rounded",
        "mlp",
        "activations",
        "kept units are divided by 1 - p in bfloat16: all are too small by a thousandth",
        method(Dropout, "forward", divided_by_rounded),
        flags=LOW,
    ),
    Fault(
        "loss summed in bfloat16",
        "embedding",
        "loss",
        "the sum over the targets is rounded",
        swap(loss_sums, low_loss),
        flags=LOW,
    ),
    Fault(
        "cast before the lookup",
        "embedding",
        "gradients",
        "the embedding is cast before its rows are taken: their gradients are added in bfloat16",
        method(Embedding, "forward", cast_before_lookup),
        flags=LOW,
    ),
    Fault(
        "gradients accumulated in bfloat16",
        "embedding",
        "gradients",
        "the running total of the micro-steps is rounded",
        accumulating(low_accumulation),
        flags=LOW,
    ),
    Fault(
        "gradients' norm in bfloat16",
        "embedding",
        "clip",
        "the norm by which gradients are clipped is rounded",
        swap(clip_by_global_norm, low_norm_of_gradients),
        flags=LOW,
    ),
    Fault(
        "Muon's momentum in bfloat16",
        "gpt",
        "update",
        "the momentum is kept in bfloat16",
        low_moments("muon"),
        flags=LOW,
    ),
    Fault(
        "AdamW's moments in bfloat16",
        "embedding",
        "update",
        "both moments are kept in bfloat16",
        low_moments("adamw"),
        flags=LOW,
    ),
    Fault(
        "update rounded",
        "linear",
        "update",
        "the update passes through bfloat16 on its way to the parameters",
        applying(lambda params, updates: apply_updates(params, all_low(updates))),
        flags=LOW,
    ),
    Fault(
        "master weights in bfloat16",
        "mlp",
        "update",
        "each step's new parameters are rounded",
        applying(lambda params, updates: all_low(apply_updates(params, updates))),
        flags=LOW,
    ),
)
