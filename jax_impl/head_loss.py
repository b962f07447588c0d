"""The loss of a micro-batch, with derivatives that are fast where the logits are many.

Logits (B, T, V), their softcap, softmax and gradients are a training step's largest arrays by far once V is large.
So the cross-entropy's gradient is one pass over them, and a language model's large logits are computed in chunks of T:
the head is applied to a chunk, its sums and gradients are computed at once, and its logits are freed before the next.
Of a chunk only the logits before the softcap are written to memory, in the compute dtype.

Shapes: B batch, T time, D model, V vocabulary, P chunks, t time of a chunk.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jax_impl.losses import IGNORE, Sums, loss_sums, softmax_cross_entropy
from jax_impl.models import forward
from jax_impl.models.gpt import GPT, softcapped
from twinstep.config import Config, GPTConfig
from twinstep.resolve import sequence_len, units_per_step

# A chunk has as many logits as this (64 MB in float32), or an eighth of all: each adds a gradient of the size of the
# head's weight, which must stay small beside the chunk's own work.
SMALLEST_CHUNK = 2**24
MOST_CHUNKS = 8

Head = Callable[[Any, jax.Array], jax.Array]  # (weights, x (B, T, D)) -> logits (B, T, V) before the softcap


def batch_loss(module: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Sums:
    """`loss_sums` of a module's logits for one micro-batch; differentiable in `nats`."""
    targets, chunks = batch["targets"], 1
    if isinstance(module, GPT):
        chunks = count_chunks(targets.size, targets.shape[-1], module.lm_head.out_features)
    if chunks == 1:
        return loss_sums(forward(module, batch, key), targets, cross_entropy=one_pass_cross_entropy)
    head, weights = head_of(module)
    return chunked_loss(head, module.config.softcap, chunks, weights, module.hidden(batch["tokens"]), targets)


@jax.custom_vjp
def one_pass_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`softmax_cross_entropy`, whose gradient is probability minus one-hot in one pass over the logits.

    The lookup's own derivative would scatter into an array of zeros first.
    """
    return softmax_cross_entropy(logits, targets)


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    at_target = jnp.take_along_axis(wide, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    largest = jnp.max(wide, axis=-1)
    total = jnp.sum(jnp.exp(wide - largest[..., None]), axis=-1)
    nats = jnp.where(targets == IGNORE, 0, largest + jnp.log(total) - at_target)
    return nats, (logits, targets, largest, total)


def _cross_entropy_backward(saved: Any, dnats: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, largest, total = saved
    dlogits = _dlogits(logits.astype(largest.dtype), targets, largest, total, dnats)
    return dlogits.astype(logits.dtype), None


def _dlogits(wide: jax.Array, targets: jax.Array, largest: jax.Array, total: jax.Array, dnats: jax.Array) -> jax.Array:
    """The gradient by the logits. total: of exp(logits - largest).

    Not by way of exp(logits - logsumexp): the logsumexp is rounded to its own ulp, and all probabilities of a token
    would be too large or too small together, which does not average out in the gradient of what comes before the head.
    """
    probability = jnp.exp(wide - largest[..., None]) / total[..., None]
    one_hot = targets[..., None] == jnp.arange(wide.shape[-1])
    return jnp.where(targets == IGNORE, 0, dnats)[..., None] * (probability - one_hot)


one_pass_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def capped_cross_entropy(raw: jax.Array, targets: jax.Array, softcap: float) -> jax.Array:
    """`softmax_cross_entropy` of the softcapped logits, from those before the cap.

    Neither capped logits nor their tanh are kept: to compute them again costs less than to write and read them in
    float32. The largest is capped alone, since the cap keeps the order.
    """
    return softmax_cross_entropy(softcapped(raw, softcap), targets)


def _capped_forward(raw: jax.Array, targets: jax.Array, softcap: float) -> tuple[jax.Array, Any]:
    at_target = jnp.take_along_axis(raw, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    largest = softcapped(jnp.max(raw, axis=-1), softcap)
    total = jnp.sum(jnp.exp(softcapped(raw, softcap) - largest[..., None]), axis=-1)
    nats = jnp.where(targets == IGNORE, 0, largest + jnp.log(total) - softcapped(at_target, softcap))
    return nats, (raw, targets, largest, total)


def _capped_backward(softcap: float, saved: Any, dnats: jax.Array) -> tuple[jax.Array, None]:
    raw, targets, largest, total = saved
    raw = jax.lax.optimization_barrier(raw)  # else XLA would keep the tanh of the forward pass
    logits = softcapped(raw, softcap)
    dlogits = _dlogits(logits, targets, largest, total, dnats)
    return (dlogits * (1 - jnp.square(logits / softcap))).astype(raw.dtype), None


capped_cross_entropy.defvjp(_capped_forward, _capped_backward)


def count_chunks(tokens: int, length: int, vocab_size: int) -> int:
    """P for B T tokens in sequences of T; 1 where the logits are few enough to be computed at once."""
    chunks = -(-tokens * vocab_size // SMALLEST_CHUNK)
    return min(chunks, MOST_CHUNKS, length)


def large_logits(config: Config) -> bool:
    """Whether a micro-step's logits are computed in chunks, on one device; the configuration's sizes are filled in."""
    if not isinstance(config.model, GPTConfig):
        return False
    assert config.model.vocab_size is not None
    tokens = units_per_step(config) // config.train.accumulation
    return count_chunks(tokens, sequence_len(config), config.model.vocab_size) > 1


def head_of(module: GPT) -> tuple[Head, Any]:
    """`GPT.uncapped` as a function of its weights, and these weights, read once: sharded ones are gathered here."""
    parts: Any = nnx.split(module, nnx.PathContains("lm_head"), ...)
    graphdef, weights, rest = parts
    weights = nnx.from_flat_state({path: nnx.Param(x.get_value()) for path, x in nnx.to_flat_state(weights)})

    def head(weights: Any, x_BTD: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, weights, rest).uncapped(x_BTD)

    return head, weights


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def chunked_loss(
    head: Head, softcap: float, chunks: int, weights: Any, x_BTD: jax.Array, targets_BT: jax.Array
) -> Sums:
    """`loss_sums` of the head's softcapped logits. Differentiable in `nats`, with respect to `weights` and `x`.

    Only its derivative is computed in chunks: a plain one would keep all logits for the backward pass.
    """
    return loss_sums(checkpoint_name(softcapped(head(weights, x_BTD), softcap), "logits"), targets_BT)  # GPT's own tag


def _chunks_forward(
    head: Head, softcap: float, chunks: int, weights: Any, x_BTD: jax.Array, targets_BT: jax.Array
) -> tuple[Sums, Any]:
    """The sums, and already the gradients of `nats`: the backward pass only multiplies them by its cotangent."""
    B, T, D = x_BTD.shape
    t = -(-T // chunks)
    padding = ((0, 0), (0, chunks * t - T))
    x_PBtD = jnp.pad(x_BTD, (*padding, (0, 0))).reshape(B, chunks, t, D).swapaxes(0, 1)
    targets_PBt = jnp.pad(targets_BT, padding, constant_values=IGNORE).reshape(B, chunks, t).swapaxes(0, 1)

    cross_entropy = partial(capped_cross_entropy, softcap=softcap)

    def chunk(x_BtD: jax.Array, targets_Bt: jax.Array) -> tuple[Sums, Any, jax.Array]:
        def nats(weights: Any, x_BtD: jax.Array) -> tuple[jax.Array, Sums]:
            sums = loss_sums(head(weights, x_BtD), targets_Bt, cross_entropy=cross_entropy)
            return sums.nats, sums

        (dweights, dx_BtD), sums = jax.grad(nats, argnums=(0, 1), has_aux=True)(weights, x_BtD)
        return sums, dweights, dx_BtD

    def add_chunk(totals: tuple[Sums, Any], part: tuple[jax.Array, jax.Array]) -> tuple[tuple[Sums, Any], jax.Array]:
        sums, dweights, dx_BtD = chunk(*part)
        return jax.tree.map(jnp.add, totals, (sums, dweights)), dx_BtD

    shapes = jax.eval_shape(chunk, x_PBtD[0], targets_PBt[0])[:2]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (sums, dweights), dx_PBtD = jax.lax.scan(add_chunk, zeros, (x_PBtD, targets_PBt))
    return sums, (dweights, dx_PBtD.swapaxes(0, 1).reshape(B, chunks * t, D)[:, :T])


def _chunks_backward(
    head: Head, softcap: float, chunks: int, gradients: tuple[Any, jax.Array], dsums: Sums
) -> tuple[Any, jax.Array, None]:
    dweights, dx_BTD = jax.tree.map(lambda g: dsums.nats.astype(g.dtype) * g, gradients)
    return dweights, dx_BTD, None


chunked_loss.defvjp(_chunks_forward, _chunks_backward)
