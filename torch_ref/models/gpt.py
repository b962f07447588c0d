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
An nn.Identity gives a value a name of its own, by which the parity engine's hooks find it.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from torch_ref.models.attention import causal_attention
from torch_ref.models.cache import BlockCache, Cache, cached_attention
from torch_ref.models.layers import Embedding, Linear
from twinstep.config import GPTConfig

# float32's machine epsilon, in every dtype: what torch's F.rms_norm takes for eps=None in float32.
RMS_NORM_EPS = 1.1920929e-07


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """x / rms(x) over the last axis, computed in float32 or wider, returned in the dtype of x (arXiv:1910.07467)."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_NORM_EPS)


def softcapped(x: torch.Tensor, cap: float) -> torch.Tensor:
    """cap tanh(x / cap), within (-cap, cap), computed and returned in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return cap * torch.tanh(wide / cap)


def rotary_table(config: GPTConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position * theta^(-2i/C), each (length, C/2), computed in float64 and rounded once.

    Upstream computes in float32, where the angle at position 2048 is off by 1e-4; rounded once, the table is the
    same number in both frameworks.
    """
    channel = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    frequency = config.rope_theta ** (-channel / config.head_dim)
    angle_TC = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    dtype = getattr(torch, config.rotary_dtype)
    return torch.cos(angle_TC).to(dtype), torch.sin(angle_TC).to(dtype)


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

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_TC: torch.Tensor,
        sin_TC: torch.Tensor,
        cache: BlockCache | None = None,
        start: int = 0,
    ) -> torch.Tensor:
        """x (B, T, D) -> (B, T, D).

        cache: this block's keys and values of the `start` tokens before; those of x are written after them.
        """
        B, T, D = x_BTD.shape
        q_BTHC = self.c_q(x_BTD).view(B, T, self.config.heads, self.config.head_dim)
        k_BTKC = self.c_k(x_BTD).view(B, T, self.config.key_value_heads, self.config.head_dim)
        v_BTKC = self.c_v(x_BTD).view(B, T, self.config.key_value_heads, self.config.head_dim)
        q_BTHC = self.q(rms_norm(apply_rotary(q_BTHC, cos_TC, sin_TC)))
        k_BTKC = self.k(rms_norm(apply_rotary(k_BTKC, cos_TC, sin_TC)))
        if cache is None:
            y_BTHC = causal_attention(q_BTHC, k_BTKC, v_BTKC)
        else:
            y_BTHC = cached_attention(q_BTHC, k_BTKC, v_BTKC, cache, start)
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
        x_BTF = self.relu_squared(torch.square(F.relu(self.c_fc(x_BTD))))
        return self.c_proj(x_BTF)


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, param_dtype: torch.dtype):
        super().__init__()
        self.attn = CausalSelfAttention(config, param_dtype)
        self.mlp = MLP(config, param_dtype)

    def forward(
        self,
        x_BTD: torch.Tensor,
        cos_TC: torch.Tensor,
        sin_TC: torch.Tensor,
        cache: BlockCache | None = None,
        start: int = 0,
    ) -> torch.Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.attn(rms_norm(x_BTD), cos_TC, sin_TC, cache, start)
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
        return self.head(self.hidden(tokens_BT))

    def hidden(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int -> what leaves the last block (B, T, D)."""
        cos_TC, sin_TC = self.rotary(0, tokens_BT.shape[1])
        x_BTD = self.embed(tokens_BT)
        for block in self.h:
            if self.remat and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, cos_TC, sin_TC, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, cos_TC, sin_TC)
        return x_BTD

    def decode(self, tokens_BT: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """The same logits for T more tokens after those in the cache, and the cache with them in it.

        The caller keeps length + T <= S. The cache's tensors are written in place.
        """
        T = tokens_BT.shape[1]
        cos_TC, sin_TC = self.rotary(cache.length, T)
        x_BTD = self.embed(tokens_BT)
        for block, block_cache in zip(self.h, cache.blocks, strict=True):
            x_BTD = block(x_BTD, cos_TC, sin_TC, block_cache, cache.length)
        return self.head(x_BTD), cache._replace(length=cache.length + T)

    def rotary(self, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the positions start ... start + length - 1, on the model's device."""
        cos_TC, sin_TC = rotary_table(self.config, start + length)
        device = self.wte.weight.device
        return cos_TC[start:].to(device), sin_TC[start:].to(device)

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) int -> what enters the first block (B, T, D)."""
        return self.embed_norm(rms_norm(self.wte(tokens_BT)))

    def head(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What leaves the last block (B, T, D) -> logits (B, T, V)."""
        return softcapped(self.uncapped(x_BTD), self.config.softcap)

    def uncapped(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What leaves the last block (B, T, D) -> logits (B, T, V) before the softcap, in the compute dtype."""
        return self.lm_head(self.final_norm(rms_norm(x_BTD)))
