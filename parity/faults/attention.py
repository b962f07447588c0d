"""Faults inside attention: rotary embedding, query/key norm, mask, scale, grouping.

Shapes: B batch, T query time, S key time, H query heads, K key/value heads, G = H/K queries per key head, C head
channels.
"""

import itertools
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp

from jax_impl.models import gpt
from jax_impl.models.blockwise import blockwise_attention
from parity.faults.fault import Fault, swap

rms_norm, apply_rotary, rotary_table = gpt.rms_norm, gpt.apply_rotary, gpt.rotary_table


def attend(
    q_BTHC: Any,
    k_BSKC: Any,
    v_BSKC: Any,
    *,
    scale_power: float = -0.5,
    ahead: int = 0,
    scores_dtype: Any = None,
    softmax_dtype: Any = None,
    masked: float = -jnp.inf,
    tiled: bool = False,
) -> jax.Array:
    """Causal attention with one of its parts wrong; all as in jax_impl when nothing is given."""
    _, T, H, C = q_BTHC.shape
    S, K = k_BSKC.shape[1:3]
    if tiled:  # query head h reads key head h mod K instead of h div G
        k_BSHC, v_BSHC = (jnp.tile(x, (1, 1, H // K, 1)) for x in (k_BSKC, v_BSKC))
    else:
        k_BSHC, v_BSHC = (jnp.repeat(x, H // K, axis=2) for x in (k_BSKC, v_BSKC))
    scores_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC) * C**scale_power
    sees_TS = jnp.arange(S)[None, :] <= jnp.arange(T)[:, None] + ahead
    scores_BHTS = scores_BHTS.astype(scores_dtype or scores_BHTS.dtype)
    if masked == -jnp.inf:
        scores_BHTS = jnp.where(sees_TS, scores_BHTS, -jnp.inf)
    else:
        scores_BHTS = scores_BHTS + jnp.where(sees_TS, 0, jnp.asarray(masked, scores_BHTS.dtype))
    weights_BHTS = jax.nn.softmax(scores_BHTS.astype(softmax_dtype or q_BTHC.dtype), axis=-1).astype(q_BTHC.dtype)
    return jnp.einsum("bhts,bshc->bthc", weights_BHTS, v_BSHC)


def attending(**wrong: Any) -> Any:
    return swap(blockwise_attention, lambda *args: attend(*args, **wrong))


def interleaved(x_BTHC: jax.Array, cos_TC: jax.Array, sin_TC: jax.Array) -> jax.Array:
    x1, x2 = x_BTHC[..., ::2], x_BTHC[..., 1::2]
    cos, sin = cos_TC[:, None, :], sin_TC[:, None, :]
    return jnp.stack([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1).reshape(x_BTHC.shape)


def keys_rotated_in_reverse() -> Any:
    """Every second call is the keys'."""
    sign = itertools.cycle((1, -1))
    return swap(apply_rotary, lambda x, cos, sin: apply_rotary(x, cos, next(sign) * sin))()


def rounded_table(config: Any, length: int) -> Any:
    return tuple(jnp.asarray(t).astype(jnp.bfloat16) for t in rotary_table(config, length))


def without_qk_norm(x: jax.Array) -> jax.Array:
    return x if x.ndim == 4 else rms_norm(x)


def norm_before_rotary() -> Any:
    """Normalize, then rotate: a rotation keeps the norm."""
    stack = ExitStack()
    stack.enter_context(swap(rms_norm, without_qk_norm)())
    stack.enter_context(swap(apply_rotary, lambda x, cos, sin: apply_rotary(rms_norm(x), cos, sin))())
    return stack


FAULTS = (
    Fault(
        "rotary interleaved",
        "gpt",
        "activations",
        "pairs of neighbours instead of halves (transformers issue 31859)",
        swap(apply_rotary, interleaved),
    ),
    Fault(
        "rotary of the keys reversed",
        "gpt",
        "activations",
        "the sign of the angle differs between queries and keys (transformers issue 31859)",
        keys_rotated_in_reverse,
    ),
    Fault(
        "rotary table in bfloat16",
        "gpt",
        "activations",
        "angles rounded to eight bits; grows with the position (modded-nanogpt issue 39)",
        swap(rotary_table, rounded_table),
    ),
    Fault(
        "no query/key norm",
        "gpt",
        "activations",
        "queries and keys go unnormalized into the product",
        swap(rms_norm, without_qk_norm),
    ),
    Fault(
        "norm before rotary",
        "gpt",
        None,
        "queries and keys are normalized before they are rotated",
        norm_before_rotary,
        "a rotation keeps the norm, so the two commute; a table rounded to float32 rotates only nearly, 8e-9 apart",
        flags="--rotary-dtype float64",
    ),
    Fault("mask off by one", "gpt", "activations", "each position sees the next one too", attending(ahead=1)),
    Fault(
        "mask added in bfloat16",
        "gpt",
        "activations",
        "scores and mask added in bfloat16, before a softmax that is not",
        attending(masked=-1e9, scores_dtype=jnp.bfloat16),
    ),
    Fault(
        "mask of -1e9",
        "gpt",
        None,
        "a large negative number instead of minus infinity",
        attending(masked=-1e9),
        "exp(-1e9) is 0 in every dtype, as exp(-inf) is",
    ),
    Fault(
        "softmax in bfloat16",
        "gpt",
        "activations",
        "attention weights computed in bfloat16 (nanochat cbf30c8)",
        attending(softmax_dtype=jnp.bfloat16),
    ),
    Fault(
        "no attention scale",
        "gpt",
        "activations",
        "scores not divided by the root of the head's width",
        attending(scale_power=0.0),
    ),
    Fault(
        "attention scale twice",
        "gpt",
        "activations",
        "applied to the queries and again in the attention function",
        attending(scale_power=-1.0),
    ),
    Fault(
        "key heads tiled",
        "gpt",
        "activations",
        "query head h reads key head h mod K; invisible with as many key heads as query heads",
        attending(tiled=True),
    ),
    Fault(
        "key heads repeated",
        "gpt",
        None,
        "keys and values copied for each query head",
        attending(),
        "the same products, without the grouping",
    ),
)
