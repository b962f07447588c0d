"""nanochat's GPT as of November 2025 (karpathy/nanochat, nanochat/gpt.py).

Notable features:
- rotary embedding by halves, no learned positions
- RMSNorm of queries and keys after the rotation
- grouped key/value heads
- ReLU squared in an MLP of width 4 D
- RMSNorm without parameters: after the embedding, before attention, MLP and head
- no biases, untied head
- logits softcapped, in float32 or wider

Shapes: B batch, T time, S cached time, D model, H query heads, K key/value heads, C head channels, V vocabulary.
The torch.nn.Identity modules do nothing: they give intermediate values a name for the parity engine's hooks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from torch_ref.models.attention import causal_attention
from torch_ref.models.layers import Embedding, Linear
from twinstep.config import GPTConfig

# float32's machine epsilon, in every dtype: what torch's F.rms_norm takes for eps=None in float32.
RMS_NORM_EPS = 1.1920929e-07


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, one entry per block, each (B, S, K, C); `length` of S are set."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    length: int


def make_cache(config: GPTConfig, batch: int, size: int, dtype: torch.dtype) -> Cache:
    """An empty cache for `batch` sequences of at most `size` tokens."""
    shape = (batch, size, config.key_value_heads, config.head_dim)
    keys = tuple(torch.zeros(shape, dtype=dtype) for _ in range(config.depth))
    values = tuple(torch.zeros(shape, dtype=dtype) for _ in range(config.depth))
    return Cache(keys, values, 0)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """x / rms(x) over the last axis, computed in float32 or wider, returned in the type of x (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_NORM_EPS)


def rotary_table(config: GPTConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * theta^(-2i/C), each (length, C/2), computed in float64 and rounded once.

    Upstream computes in float32, where the angle at position 2048 is off by 1e-4; rounded once, the table is the
    same number in both frameworks.
    """
    channel = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    frequency = config.rope_theta ** (-channel / config.head_dim)
    angle_TC = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    dtype = getattr(torch, config.rotary_dtype)
    return angle_TC.cos().to(dtype), angle_TC.sin().to(dtype)


def apply_rotary(x_BTHC: torch.Tensor, cos_TC: torch.Tensor, sin_TC: torch.Tensor) -> torch.Tensor:
    """Rotate each pair (x[i], x[i + C/2]) by minus its angle, as upstream does (arXiv:2104.09864, by halves)."""
    half = x_BTHC.shape[-1] // 2
    x1, x2 = x_BTHC[..., :half], x_BTHC[..., half:]
    cos, sin = cos_TC[:, None, :], sin_TC[:, None, :]
    rotated = torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)
    return rotated.to(x_BTHC.dtype)


class CausalSelfAttention(nn.Module):
    """Grouped-query attention over what came before, with rotary positions and QK-norm."""

    def __init__(self, config: GPTConfig, param_dtype: torch.dtype):
        super().__init__()
        self.config = config
        width, kv_width = config.width, config.key_value_heads * config.head_dim
        self.c_q = Linear(width, width, bias=False, dtype=param_dtype)
        self.c_k = Linear(width, kv_width, bias=False, dtype=param_dtype)
        self.c_v = Linear(width, kv_width, bias=False, dtype=param_dtype)
        self.c_proj = Linear(width, width, bias=False, dtype=param_dtype)
        self.q, self.k, self.y = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x_BTD, cos_TC, sin_TC, cached=None):
        """x (B, T, D) -> (B, T, D).

        cached: keys, values and length of what came before; the new ones are written behind it, in place.
        """
        B, T, D = x_BTD.shape
        q_BTHC = self.c_q(x_BTD).view(B, T, self.config.heads, self.config.head_dim)
        k_BTKC = self.c_k(x_BTD).view(B, T, self.config.key_value_heads, self.config.head_dim)
        v_BTKC = self.c_v(x_BTD).view(B, T, self.config.key_value_heads, self.config.head_dim)
        q_BTHC = self.q(rms_norm(apply_rotary(q_BTHC, cos_TC, sin_TC)))
        k_BTKC = self.k(rms_norm(apply_rotary(k_BTKC, cos_TC, sin_TC)))
        start = 0
        if cached is not None:
            keys_BSKC, values_BSKC, start = cached
            keys_BSKC[:, start : start + T], values_BSKC[:, start : start + T] = k_BTKC, v_BTKC
            k_BTKC, v_BTKC = keys_BSKC[:, : start + T], values_BSKC[:, : start + T]
        y_BTHC = causal_attention(q_BTHC, k_BTKC, v_BTKC, start)
        return self.c_proj(self.y(y_BTHC.reshape(B, T, D)))


class MLP(nn.Module):
    """c_proj(relu(c_fc(x))^2), four times as wide inside (ReLU^2: arXiv:2109.08668)."""

    def __init__(self, config: GPTConfig, param_dtype: torch.dtype):
        super().__init__()
        self.c_fc = Linear(config.width, 4 * config.width, bias=False, dtype=param_dtype)
        self.relu_squared = nn.Identity()
        self.c_proj = Linear(4 * config.width, config.width, bias=False, dtype=param_dtype)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x_BTF = self.relu_squared(F.relu(self.c_fc(x_BTD)).square())
        return self.c_proj(x_BTF)


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, param_dtype: torch.dtype):
        super().__init__()
        self.attn = CausalSelfAttention(config, param_dtype)
        self.mlp = MLP(config, param_dtype)

    def forward(self, x_BTD, cos_TC, sin_TC, cached=None):
        """x (B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.attn(rms_norm(x_BTD), cos_TC, sin_TC, cached)
        return x_BTD + self.mlp(rms_norm(x_BTD))


class GPT(nn.Module):
    """Tokens to logits, computed in `dtype` from weights in `param_dtype`; remat: blocks are recomputed backward."""

    def __init__(self, config: GPTConfig, *, dtype: torch.dtype, param_dtype: torch.dtype, remat: bool = False):
        super().__init__()
        assert config.vocab_size is not None
        self.config = config
        self.remat = remat
        self.wte = Embedding(config.vocab_size, config.width, dtype=dtype, param_dtype=param_dtype)
        self.embed_norm, self.final_norm = nn.Identity(), nn.Identity()
        self.h = nn.ModuleList([Block(config, param_dtype) for _ in range(config.depth)])
        self.lm_head = Linear(config.width, config.vocab_size, bias=False, dtype=param_dtype)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int -> logits (B, T, V), float32 or wider, within (-softcap, softcap)."""
        cos_TC, sin_TC = self._rotary_table(tokens_BT, 0)
        x_BTD = self._embed(tokens_BT)
        for block in self.h:
            if self.remat and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, cos_TC, sin_TC, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, cos_TC, sin_TC)
        return self._head(x_BTD)

    def decode(self, tokens_BT: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """The same logits for T more tokens behind those in the cache, and the cache with them in it.

        The caller keeps length + T <= S. The cache's arrays are written in place.
        """
        cos_TC, sin_TC = self._rotary_table(tokens_BT, cache.length)
        x_BTD = self._embed(tokens_BT)
        for block, k_BSKC, v_BSKC in zip(self.h, cache.keys, cache.values, strict=True):
            x_BTD = block(x_BTD, cos_TC, sin_TC, (k_BSKC, v_BSKC, cache.length))
        return self._head(x_BTD), cache._replace(length=cache.length + tokens_BT.shape[1])

    def _rotary_table(self, tokens_BT: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos_TC, sin_TC = rotary_table(self.config, start + tokens_BT.shape[1])
        return cos_TC[start:].to(tokens_BT.device), sin_TC[start:].to(tokens_BT.device)

    def _embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.embed_norm(rms_norm(self.wte(tokens_BT)))

    def _head(self, x_BTD: torch.Tensor) -> torch.Tensor:
        logits_BTV = self.lm_head(self.final_norm(rms_norm(x_BTD)))
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        return self.config.softcap * torch.tanh(logits_BTV / self.config.softcap)
