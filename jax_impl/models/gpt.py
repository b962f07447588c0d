"""nanochat's GPT as of November 2025 (karpathy/nanochat, nanochat/gpt.py at 16788eed3cc3a79a94fa5bb852db722f79852cb7).

Notable features:
- rotary embedding by halves, no learned positions
- RMSNorm of queries and keys after the rotation
- grouped key/value heads
- ReLU squared in an MLP of width 4 D
- RMSNorm without parameters: after the embedding, before attention, MLP and head
- no biases, untied head
- logits softcapped, in float32 or wider

Shapes: B batch, T time, S cached time, D model, F hidden, H query heads, K key/value heads, C head channels, V
vocabulary.
An Identity gives a value a name of its own, by which the parity engine finds it; see `layers.Module`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_impl.models.attention import causal_attention
from jax_impl.models.block_scan import scan_blocks
from jax_impl.models.cache import BlockCache, Cache, cached_attention
from jax_impl.models.layers import Embedding, Identity, Linear, Module
from twinstep.config import GPTConfig

# float32's machine epsilon, in every dtype: what torch's F.rms_norm takes for eps=None in float32.
RMS_NORM_EPS = 1.1920929e-07


def rms_norm(x: jax.Array) -> jax.Array:
    """x / rms(x) over the last axis, computed in float32 or wider, returned in the dtype of x (arXiv:1910.07467)."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + RMS_NORM_EPS)).astype(x.dtype)


def softcapped(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap), within (-cap, cap), computed and returned in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return cap * jnp.tanh(wide / cap)


def rotary_table(config: GPTConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * theta^(-2i/C), each (length, C/2), computed in float64 and rounded once.

    Upstream computes in float32, where the angle at position 2048 is off by 1e-4; rounded once, the table is the
    same number in both frameworks.
    """
    channel = np.arange(0, config.head_dim, 2, dtype=np.float64)
    frequency = config.rope_theta ** (-channel / config.head_dim)
    angle_TC = np.outer(np.arange(length, dtype=np.float64), frequency)
    dtype = getattr(jnp, config.rotary_dtype)
    return np.cos(angle_TC).astype(dtype), np.sin(angle_TC).astype(dtype)


def apply_rotary(x_BTHC: jax.Array, cos_TC: jax.Array, sin_TC: jax.Array) -> jax.Array:
    """Rotate each pair (x[i], x[i + C/2]) by minus its angle, as upstream does (arXiv:2104.09864, by halves)."""
    wide = jnp.promote_types(x_BTHC.dtype, cos_TC.dtype)  # one cast, so that both gradients of x are added before it
    x1, x2 = jnp.split(x_BTHC.astype(wide), 2, axis=-1)
    cos, sin = cos_TC[:, None, :], sin_TC[:, None, :]
    rotated = jnp.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1)
    return rotated.astype(x_BTHC.dtype)


class CausalSelfAttention(Module):
    """Grouped-query attention over what came before, with rotary positions and QK-norm."""

    attention = staticmethod(causal_attention)  # or a faster form of it, put here by `make_model`

    def __init__(self, config: GPTConfig, param_dtype: jnp.dtype):
        self.config = config
        width, kv_width = config.width, config.key_value_heads * config.head_dim
        self.c_q = Linear(width, width, bias=False, param_dtype=param_dtype)
        self.c_k = Linear(width, kv_width, bias=False, param_dtype=param_dtype)
        self.c_v = Linear(width, kv_width, bias=False, param_dtype=param_dtype)
        self.c_proj = Linear(width, width, bias=False, param_dtype=param_dtype)
        self.q, self.k, self.y = Identity(), Identity(), Identity()

    def forward(
        self,
        x_BTD: jax.Array,
        cos_TC: jax.Array,
        sin_TC: jax.Array,
        cache: BlockCache | None = None,
        start: jax.Array | int = 0,
    ) -> jax.Array:
        """x (B, T, D) -> (B, T, D).

        cache: this block's keys and values of the `start` tokens before; those of x are written after them.
        """
        B, T, D = x_BTD.shape
        q_BTHC = self.c_q(x_BTD).reshape(B, T, self.config.heads, self.config.head_dim)
        k_BTKC = self.c_k(x_BTD).reshape(B, T, self.config.key_value_heads, self.config.head_dim)
        v_BTKC = self.c_v(x_BTD).reshape(B, T, self.config.key_value_heads, self.config.head_dim)
        q_BTHC = self.q(rms_norm(apply_rotary(q_BTHC, cos_TC, sin_TC)))
        k_BTKC = self.k(rms_norm(apply_rotary(k_BTKC, cos_TC, sin_TC)))
        if cache is None:
            y_BTHC = self.attention(q_BTHC, k_BTKC, v_BTKC)
        else:
            y_BTHC = cached_attention(q_BTHC, k_BTKC, v_BTKC, cache, start)
        return self.c_proj(self.y(y_BTHC.reshape(B, T, D)))


class MLP(Module):
    """c_proj(relu(c_fc(x))^2), four times as wide inside (ReLU^2: arXiv:2109.08668)."""

    def __init__(self, config: GPTConfig, param_dtype: jnp.dtype):
        self.c_fc = Linear(config.width, 4 * config.width, bias=False, param_dtype=param_dtype)
        self.relu_squared = Identity()
        self.c_proj = Linear(4 * config.width, config.width, bias=False, param_dtype=param_dtype)

    def forward(self, x_BTD: jax.Array) -> jax.Array:
        """x (B, T, D) -> (B, T, D)."""
        x_BTF = self.relu_squared(jnp.square(jax.nn.relu(self.c_fc(x_BTD))))
        return self.c_proj(x_BTF)


class Block(Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, param_dtype: jnp.dtype):
        self.attn = CausalSelfAttention(config, param_dtype)
        self.mlp = MLP(config, param_dtype)

    def forward(
        self,
        x_BTD: jax.Array,
        cos_TC: jax.Array,
        sin_TC: jax.Array,
        cache: BlockCache | None = None,
        start: jax.Array | int = 0,
    ) -> jax.Array:
        """x (B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.attn(rms_norm(x_BTD), cos_TC, sin_TC, cache, start)
        return x_BTD + self.mlp(rms_norm(x_BTD))


class GPT(Module):
    """Tokens to logits, computed in `dtype` from weights in `param_dtype`; remat: blocks are recomputed backward."""

    scan_blocks = False  # whether the blocks are one loop over stacked weights, set by `make_model`

    def __init__(self, config: GPTConfig, *, dtype: jnp.dtype, param_dtype: jnp.dtype, remat: bool = False):
        assert config.vocab_size is not None
        self.config = config
        self.remat = remat
        self.wte = Embedding(config.vocab_size, config.width, dtype=dtype, param_dtype=param_dtype)
        self.embed_norm, self.final_norm = Identity(), Identity()
        self.h = nnx.List([Block(config, param_dtype) for _ in range(config.depth)])
        self.lm_head = Linear(config.width, config.vocab_size, bias=False, param_dtype=param_dtype)

    def forward(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> logits (B, T, V), float32 or wider, within (-softcap, softcap)."""
        return self.head(self.hidden(tokens_BT))

    def hidden(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> what leaves the last block (B, T, D)."""
        cos_TC, sin_TC = self.rotary(0, tokens_BT.shape[1], tokens_BT.shape[1])
        x_BTD = self.embed(tokens_BT)
        if self.scan_blocks:
            return scan_blocks(self.h, x_BTD, cos_TC, sin_TC, self.remat)
        for block in self.h:
            if self.remat:
                x_BTD = jax.checkpoint(block)(x_BTD, cos_TC, sin_TC)
            else:
                x_BTD = block(x_BTD, cos_TC, sin_TC)
        return x_BTD

    def decode(self, tokens_BT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The same logits for T more tokens after those in the cache, and the cache with them in it.

        Tokens past the cache's size would overwrite its end: the caller keeps length + T <= S.
        """
        T, S = tokens_BT.shape[1], cache.blocks[0].keys.shape[-1]
        cos_TC, sin_TC = self.rotary(cache.length, T, S)
        x_BTD = self.embed(tokens_BT)
        for block, block_cache in zip(self.h, cache.blocks, strict=True):
            x_BTD = block(x_BTD, cos_TC, sin_TC, block_cache, cache.length)
        return self.head(x_BTD), cache._replace(length=cache.length + T)

    def rotary(self, start: jax.Array | int, length: int, size: int) -> tuple[jax.Array, jax.Array]:
        """cos and sin of the positions start ... start + length - 1, cut from a table of `size` of them."""
        cos_TC, sin_TC = map(jnp.asarray, rotary_table(self.config, size))
        cut = lambda table: jax.lax.dynamic_slice_in_dim(table, start, length)
        return cut(cos_TC), cut(sin_TC)

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """tokens (B, T) int -> what enters the first block (B, T, D)."""
        return self.embed_norm(rms_norm(self.wte(tokens_BT)))

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """What leaves the last block (B, T, D) -> logits (B, T, V)."""
        return softcapped(self.uncapped(x_BTD), self.config.softcap)

    def uncapped(self, x_BTD: jax.Array) -> jax.Array:
        """What leaves the last block (B, T, D) -> logits (B, T, V) before the softcap, in the compute dtype."""
        return self.lm_head(self.final_norm(rms_norm(x_BTD)))
