"""Keys and values of the tokens seen so far, and attention over them.

Shapes: B batch, T query time, S cached time, H query heads, K key/value heads, C head channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from torch_ref.models.attention import causal_attention
from twinstep.config import GPTConfig


@dataclass
class BlockCache:
    """One block's keys and values, each (B, S, K, C); they change in place."""

    keys: torch.Tensor
    values: torch.Tensor


class Cache(NamedTuple):
    """The caches of all blocks; `length` of their S tokens are set."""

    blocks: tuple[BlockCache, ...]
    length: int


def make_cache(config: GPTConfig, batch: int, size: int, dtype: torch.dtype) -> Cache:
    """An empty cache for `batch` sequences of at most `size` tokens."""
    K, C = config.key_value_heads, config.head_dim
    blocks = [
        BlockCache(torch.zeros((batch, size, K, C), dtype=dtype), torch.zeros((batch, size, K, C), dtype=dtype))
        for _ in range(config.depth)
    ]
    return Cache(tuple(blocks), 0)


def cached_attention(
    q_BTHC: torch.Tensor, k_BTKC: torch.Tensor, v_BTKC: torch.Tensor, cache: BlockCache, start: int
) -> torch.Tensor:
    """`causal_attention` of T tokens after the `start` in the cache, into which they are written; (B, T, H, C)."""
    end = start + q_BTHC.shape[1]
    cache.keys[:, start:end], cache.values[:, start:end] = k_BTKC, v_BTKC
    return causal_attention(q_BTHC, cache.keys[:, :end], cache.values[:, :end], start)
