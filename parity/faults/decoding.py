"""Faults of generation: the cache of keys and values, and the choice of the next token.

Shapes: B sequences, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_impl import sampling
from jax_impl.models import cache
from jax_impl.models.gpt import GPT
from parity.faults.fault import Fault, method, swap

cached_attention, sample, rotary = cache.cached_attention, sampling.sample, GPT.rotary


def written_late(q_BTHC: Any, k_BTKC: Any, v_BTKC: Any, block_cache: Any, start: Any) -> jax.Array:
    return cached_attention(q_BTHC, k_BTKC, v_BTKC, block_cache, start + 1)


def rounded(q_BTHC: Any, k_BTKC: Any, v_BTKC: Any, block_cache: Any, start: Any) -> jax.Array:
    k_BTKC, v_BTKC = (x.astype(jnp.bfloat16).astype(x.dtype) for x in (k_BTKC, v_BTKC))
    return cached_attention(q_BTHC, k_BTKC, v_BTKC, block_cache, start)


def from_zero(self: Any, start: Any, length: int, size: int) -> Any:
    return rotary(self, 0, length, size)


def sampling_with(change: Any) -> Any:
    """Another choice of tokens: `change(logits, uniform, temperature)` gives all three anew."""

    def faulty(logits_BV: Any, uniform_B: Any, temperature: float, *filters: Any) -> jax.Array:
        return sample(*change(logits_BV, uniform_B, temperature), *filters)

    return swap(sample, faulty)


FAULTS = (
    Fault(
        "decoding from position zero",
        "gpt",
        "generation",
        "each new token is rotated as the first one is",
        method(GPT, "rotary", from_zero),
    ),
    Fault(
        "cache written one place late",
        "gpt",
        "generation",
        "each token sees an empty key before its own",
        swap(cached_attention, written_late),
    ),
    Fault(
        "cache in bfloat16",
        "gpt",
        "generation",
        "cached keys and values are rounded to eight bits",
        swap(cached_attention, rounded),
    ),
    Fault(
        "temperature multiplied",
        "gpt",
        "generation",
        "logits times the temperature",
        sampling_with(lambda logits_BV, uniform_B, t: (logits_BV, uniform_B, 1 / t if t else t)),
    ),
    Fault(
        "random number from the other end",
        "gpt",
        "generation",
        "the cumulative distribution is read from 1 downwards",
        sampling_with(lambda logits_BV, uniform_B, t: (logits_BV, jnp.nextafter(1 - uniform_B, 0), t)),
    ),
)
