"""Faults of a GPT's layers that a usual test does not see: float32 within float64, another source's details.

Shapes: B batch, T query time, S key time, D model, H query heads, K key/value heads, C head channels.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jax_impl.models import gpt
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.models.gpt import GPT, Block
from jax_impl.models.layers import Embedding
from parity.faults.fault import Fault, method, swap

rms_norm, rotary_table, softcapped = gpt.rms_norm, gpt.rotary_table, gpt.softcapped
embedding_forward, block_forward, hidden = Embedding.forward, Block.forward, GPT.hidden


def norm_in_float32(x: jax.Array) -> jax.Array:
    return rms_norm(x.astype(jnp.float32)).astype(x.dtype)


def library_attention(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """jax.nn's, whose softmax is float32 whatever its inputs are."""
    return jax.nn.dot_product_attention(q_BTHC, k_BSKC, v_BSKC, is_causal=True)


def windowed(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    """Each query sees the last 32 keys."""
    H, T, C = q_BTHC.shape[2], q_BTHC.shape[1], q_BTHC.shape[3]
    k_BSHC, v_BSHC = (jnp.repeat(x, H // k_BSKC.shape[2], axis=2) for x in (k_BSKC, v_BSKC))
    scores_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC) * C**-0.5
    before_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None, :]
    scores_BHTS = jnp.where((before_TS >= 0) & (before_TS < 32), scores_BHTS, -jnp.inf)
    return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores_BHTS, axis=-1), v_BSHC)


def scaled_by_width(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    return blockwise_attention(q_BTHC / q_BTHC.shape[2] ** 0.5, k_BSKC, v_BSKC)


def values_normed(q_BTHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array) -> jax.Array:
    return blockwise_attention(q_BTHC, k_BSKC, rms_norm(v_BSKC))


def scaled_embedding(self: Any, tokens_BT: jax.Array) -> jax.Array:
    rows_BTD = embedding_forward(self, tokens_BT)
    return rows_BTD * rows_BTD.shape[-1] ** 0.5


def last_first(self: Any, tokens_BT: jax.Array) -> jax.Array:
    self.h = type(self.h)(reversed(list(self.h)))
    return hidden(self, tokens_BT)


def one_block_twice(self: Any, tokens_BT: jax.Array) -> jax.Array:
    self.h = type(self.h)([self.h[0]] * len(self.h))
    return hidden(self, tokens_BT)


def scaled_residual(self: Any, x_BTD: jax.Array, *args: Any) -> jax.Array:
    """GPT-2's scale of what is added to the residual stream, as a factor in the forward pass."""
    return x_BTD + (block_forward(self, x_BTD, *args) - x_BTD) / 2


def without_final_norm(self: Any, x_BTD: jax.Array) -> jax.Array:
    return self.lm_head(self.final_norm(x_BTD))


FAULTS = (
    Fault(
        "norm in float32",
        "gpt",
        "activations",
        "a cast within the norm, which a float64 check would otherwise hide behind",
        swap(rms_norm, norm_in_float32),
    ),
    Fault(
        "attention of jax.nn",
        "gpt",
        "activations",
        "jax.nn.dot_product_attention, whose softmax is float32 in a float64 run too",
        swap(blockwise_attention, library_attention),
    ),
    Fault(
        "softcap in float32",
        "gpt",
        "activations",
        "logits cast to float32, and back",
        swap(softcapped, lambda x, cap: softcapped(x.astype(jnp.float32), cap).astype(x.dtype)),
    ),
    Fault(
        "window of 32 keys",
        "gpt",
        "activations",
        "attention over a sliding window",
        swap(blockwise_attention, windowed),
    ),
    Fault(
        "scores scaled by the width",
        "gpt",
        "activations",
        "divided by the root of the model's width, not of the head's",
        swap(blockwise_attention, scaled_by_width),
    ),
    Fault(
        "values normalized",
        "gpt",
        "activations",
        "the norm of queries and keys is applied to the values too",
        swap(blockwise_attention, values_normed),
    ),
    Fault(
        "another rotary base",
        "gpt",
        "activations",
        "1e5 for 1e4, a newer recipe's",
        swap(rotary_table, lambda config, length: rotary_table(replace(config, rope_theta=1e5), length)),
    ),
    Fault(
        "embedding scaled by the root of the width",
        "gpt",
        "activations",
        "Gemma's scale; the norm after it hides all of it but the eps",
        method(Embedding, "forward", scaled_embedding),
    ),
    Fault(
        "blocks in reverse order",
        "gpt",
        "activations",
        "the last block comes first",
        method(GPT, "hidden", last_first),
    ),
    Fault(
        "one block's weights for all",
        "gpt",
        "activations",
        "a loop that closes over the first block",
        method(GPT, "hidden", one_block_twice),
    ),
    Fault(
        "residual scaled",
        "gpt",
        "activations",
        "what a block adds is halved",
        method(Block, "forward", scaled_residual),
    ),
    Fault(
        "no norm before the head",
        "gpt",
        "activations",
        "the last block's output goes to the head as it is",
        method(GPT, "uncapped", without_final_norm),
    ),
)
