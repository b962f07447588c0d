"""nanochat's GPT as of November 2025 (karpathy/nanochat, nanochat/gpt.py).

Notable features:
- rotary embedding by halves, no learned positions
- RMSNorm of queries and keys after the rotation
- grouped key/value heads
- ReLU squared in an MLP of width 4 D
- RMSNorm without parameters: after the embedding, before attention, MLP and head
- no biases, untied head
- logits softcapped, in float32 or wider

Shapes: B batch, T time, S cached time, D model, H query heads, K key/value heads, C head channels, V vocabulary;
M = B K key/value heads of a cache.
Names in quotes are the paths of torch's modules, which the parity engine compares one by one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jax_impl.models.attention import cached_attention, causal_attention
from jax_impl.models.layers import Embedding, Linear
from twinstep.config import GPTConfig

# float32's machine epsilon, in every dtype: what torch's F.rms_norm takes for eps=None in float32.
RMS_NORM_EPS = 1.1920929e-07


class Cache(NamedTuple):
    """Keys (M, C, S) and values (M, S, C) of the tokens seen so far, one entry per block; `length` of S are set.

    torch's are (B, S, K, C), which XLA would copy, turned around, at every token.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array


def make_cache(config: GPTConfig, batch: int, size: int, dtype: jnp.dtype) -> Cache:
    """An empty cache for `batch` sequences of at most `size` tokens."""
    M, C = batch * config.key_value_heads, config.head_dim
    # An array for each block: a buffer can be donated once only.
    keys = tuple(jnp.zeros((M, C, size), dtype) for _ in range(config.depth))
    values = tuple(jnp.zeros((M, size, C), dtype) for _ in range(config.depth))
    return Cache(keys, values, jnp.int32(0))


def rms_norm(x: jax.Array) -> jax.Array:
    """x / rms(x) over the last axis, computed in float32 or wider, returned in the type of x (arXiv:1910.07467)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + RMS_NORM_EPS)).astype(x.dtype)


def rotary_table(config: GPTConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * theta^(-2i/C), each (length, C/2), computed in float64 and rounded once.

    Upstream computes in float32, where the angle at position 2048 is off by 1e-4; rounded once, the table is the
    same number in both frameworks.
    """
    frequency = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angle_TC = np.arange(length)[:, None] * frequency[None, :]
    dtype = jnp.dtype(config.rotary_dtype)
    return np.cos(angle_TC).astype(dtype), np.sin(angle_TC).astype(dtype)


@jax.custom_vjp
def apply_rotary(x_BTHC: jax.Array, cos_TC: jax.Array, sin_TC: jax.Array) -> jax.Array:
    """Rotate each pair (x[i], x[i + C/2]) by minus its angle, as upstream does (arXiv:2104.09864, by halves)."""
    half = x_BTHC.shape[-1] // 2
    x1, x2 = x_BTHC[..., :half], x_BTHC[..., half:]
    wide = jnp.promote_types(x_BTHC.dtype, cos_TC.dtype)
    cos, sin = cos_TC[:, None, :].astype(wide), sin_TC[:, None, :].astype(wide)
    rotated = jnp.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1)
    return rotated.astype(x_BTHC.dtype)


# A rotation's transpose is the rotation back; JAX's own rule would pad and add the halves. The table is a constant.
apply_rotary.defvjp(
    lambda x_BTHC, cos_TC, sin_TC: (apply_rotary(x_BTHC, cos_TC, sin_TC), (cos_TC, sin_TC)),
    lambda table, dy_BTHC: (apply_rotary(dy_BTHC, table[0], -table[1]), None, None),
)


class CausalSelfAttention(nnx.Module):
    """Grouped-query attention over what came before, with rotary positions and QK-norm."""

    def __init__(self, config: GPTConfig, param_dtype: jnp.dtype):
        self.config = config
        width, kv_width = config.width, config.key_value_heads * config.head_dim
        self.c_q = Linear(width, width, bias=False, param_dtype=param_dtype)
        self.c_k = Linear(width, kv_width, bias=False, param_dtype=param_dtype)
        self.c_v = Linear(width, kv_width, bias=False, param_dtype=param_dtype)
        self.c_proj = Linear(width, width, bias=False, param_dtype=param_dtype)
        self.attend: Callable[..., jax.Array] = causal_attention  # or another implementation of it
        self.path = ""

    def __call__(self, x_BTD, cos_TC, sin_TC, cached=None):
        """x (B, T, D) -> (B, T, D), and with a cache the keys (M, C, S) and values (M, S, C) up to the last token.

        cached: keys, values and length of what came before; the new ones are written behind it.
        """
        B, T, D = x_BTD.shape
        q_BTHC = self.c_q(x_BTD).reshape(B, T, self.config.heads, self.config.head_dim)
        k_BTKC = self.c_k(x_BTD).reshape(B, T, self.config.key_value_heads, self.config.head_dim)
        v_BTKC = self.c_v(x_BTD).reshape(B, T, self.config.key_value_heads, self.config.head_dim)
        q_BTHC = checkpoint_name(rms_norm(apply_rotary(q_BTHC, cos_TC, sin_TC)), f"{self.path}.q")
        k_BTKC = checkpoint_name(rms_norm(apply_rotary(k_BTKC, cos_TC, sin_TC)), f"{self.path}.k")
        if cached is None:
            kept, y_BTHC = None, self.attend(q_BTHC, k_BTKC, v_BTKC)
        else:
            keys_MCS, values_MSC, start = cached
            k_MCT = k_BTKC.transpose(0, 2, 3, 1).reshape(*keys_MCS.shape[:2], T)
            v_MTC = v_BTKC.transpose(0, 2, 1, 3).reshape(values_MSC.shape[0], T, -1)
            keys_MCS = jax.lax.dynamic_update_slice_in_dim(keys_MCS, k_MCT, start, axis=2)
            values_MSC = jax.lax.dynamic_update_slice_in_dim(values_MSC, v_MTC, start, axis=1)
            kept, y_BTHC = (keys_MCS, values_MSC), cached_attention(q_BTHC, keys_MCS, values_MSC, start)
        y_BTD = checkpoint_name(y_BTHC.reshape(B, T, D), f"{self.path}.y")
        return checkpoint_name(self.c_proj(y_BTD), self.path), kept


class MLP(nnx.Module):
    """c_proj(relu(c_fc(x))^2), four times as wide inside (ReLU^2: arXiv:2109.08668)."""

    def __init__(self, config: GPTConfig, param_dtype: jnp.dtype):
        self.c_fc = Linear(config.width, 4 * config.width, bias=False, param_dtype=param_dtype)
        self.c_proj = Linear(4 * config.width, config.width, bias=False, param_dtype=param_dtype)
        self.path = ""

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """x (B, T, D) -> (B, T, D)."""
        x_BTF = checkpoint_name(jnp.square(jax.nn.relu(self.c_fc(x_BTD))), f"{self.path}.relu_squared")
        return checkpoint_name(self.c_proj(x_BTF), self.path)


class Block(nnx.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, param_dtype: jnp.dtype):
        self.attn = CausalSelfAttention(config, param_dtype)
        self.mlp = MLP(config, param_dtype)
        self.path = ""

    def __call__(self, x_BTD, cos_TC, sin_TC, cached=None):
        """x (B, T, D) -> (B, T, D), and with a cache its keys and values."""
        y_BTD, kv = self.attn(rms_norm(x_BTD), cos_TC, sin_TC, cached)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.mlp(rms_norm(x_BTD))
        return checkpoint_name(x_BTD, self.path), kv


class GPT(nnx.Module):
    """Tokens to logits, computed in `dtype` from weights in `param_dtype`; remat: blocks are recomputed backward."""

    def __init__(self, config: GPTConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype, remat: bool = False):
        assert config.vocab_size is not None
        self.config = config
        self.vocab_size = config.vocab_size
        self.remat = remat
        self.fetch: Callable[[nnx.State], nnx.State] | None = None  # see `_loop`
        self.wte = Embedding(config.vocab_size, config.width, dtype=dtype, param_dtype=param_dtype)
        self.h = nnx.List([Block(config, param_dtype) for _ in range(config.depth)])
        self.lm_head = Linear(config.width, config.vocab_size, bias=False, param_dtype=param_dtype)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> logits (B, T, V), float32 or wider, within (-softcap, softcap)."""
        return self._head(self.hidden(tokens_BT))

    def hidden(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> what leaves the last block (B, T, D)."""
        cos_TC, sin_TC = map(jnp.asarray, rotary_table(self.config, tokens_BT.shape[1]))
        x_BTD = self._embed(tokens_BT)
        if self.fetch is not None:
            return self._loop(self.fetch, x_BTD, cos_TC, sin_TC)
        for block in self.h:
            run = jax.checkpoint(block) if self.remat else block
            x_BTD, _ = run(x_BTD, cos_TC, sin_TC)
        return x_BTD

    def _loop(self, fetch: Callable[[nnx.State], nnx.State], x_BTD, cos_TC, sin_TC) -> jax.Array:
        """The blocks as one loop over their weights stacked, (B, T, D) -> (B, T, D).

        It is compiled once whatever the depth, and `fetch`, which makes a block's weights from what the loop finds in
        their place, is called for one block at a time, once more in the backward pass with `remat`.
        """
        graphdef = nnx.graphdef(self.h[0])  # the blocks differ in their weights and paths only
        stacked = jax.tree.map(lambda *blocks: jnp.stack(blocks), *(nnx.state(block) for block in self.h))

        def run(x_BTD: jax.Array, weights: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, fetch(weights))(x_BTD, cos_TC, sin_TC)[0], None

        # A loop's body is not merged with its neighbours: the barriers of `checkpoint` would only be in the way.
        return jax.lax.scan(jax.checkpoint(run, prevent_cse=False) if self.remat else run, x_BTD, stacked)[0]

    def head(self) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
        """The function (weights, x (B, T, D)) -> logits (B, T, V), and its weights: all that follows the last block."""
        parts: Any = nnx.split(self, nnx.PathContains("lm_head"), ...)
        graphdef, weights, rest = parts
        return lambda weights, x_BTD: nnx.merge(graphdef, weights, rest)._head(x_BTD), weights

    def decode(self, tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The same logits for T more tokens behind those in the cache, and the cache with them in it.

        Tokens past the cache's size would overwrite its end: the caller keeps length + T <= S.
        """
        T, size = tokens_BT.shape[1], cache.keys[0].shape[2]
        table = [jnp.asarray(t) for t in rotary_table(self.config, size)]
        cos_TC, sin_TC = (jax.lax.dynamic_slice_in_dim(t, cache.length, T) for t in table)
        x_BTD = self._embed(tokens_BT)
        keys, values = [], []
        for block, k_MCS, v_MSC in zip(self.h, cache.keys, cache.values, strict=True):
            x_BTD, (k_MCS, v_MSC) = block(x_BTD, cos_TC, sin_TC, (k_MCS, v_MSC, cache.length))
            keys.append(k_MCS)
            values.append(v_MSC)
        return self._head(x_BTD), Cache(tuple(keys), tuple(values), cache.length + T)

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        return checkpoint_name(rms_norm(self.wte(tokens_BT)), "embed_norm")

    def _head(self, x_BTD: jax.Array) -> jax.Array:
        logits_BTV = self.lm_head(checkpoint_name(rms_norm(x_BTD), "final_norm"))
        logits_BTV = logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
        return self.config.softcap * jnp.tanh(logits_BTV / self.config.softcap)
