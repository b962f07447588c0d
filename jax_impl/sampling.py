"""The next token from logits: temperature, top-k, top-p (nucleus), and one uniform random number for each token.

Shapes: B sequences, V vocabulary.
"""

import jax
import jax.numpy as jnp

GREEDY_BELOW = 1e-6  # a smaller temperature is taken as 0: dividing by it may overflow


def filter_logits(logits_BV: jax.Array, top_k: int | None, top_p: float) -> jax.Array:
    """-inf for all but the `top_k` largest logits, and of these all but the nucleus of probability `top_p`.

    The nucleus is the smallest set of likeliest tokens with at least that probability (arXiv:1904.09751). Tokens as
    likely as the last one kept are kept too.
    """
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        likelier_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        least_B1 = jnp.amin(jnp.where(likelier_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV


def sample(
    logits_BV: jax.Array, uniform_B: jax.Array, temperature: float, top_k: int | None, top_p: float
) -> jax.Array:
    """logits (B, V), numbers in [0, 1) (B,) -> tokens (B,) int32, by inverting the cumulative distribution.

    Temperature comes before the filters. At temperature 0 the likeliest token, the first of equals.
    """
    if temperature < GREEDY_BELOW:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    probability_BV = jax.nn.softmax(filter_logits(logits_BV / temperature, top_k, top_p), axis=-1)
    # A parallel cumsum can grow, by rounding, where it adds zero: only tokens that have a probability are chosen.
    cumulative_BV = jnp.where(probability_BV > 0, jnp.cumsum(probability_BV, axis=-1), 0)
    total_B1 = jnp.amax(cumulative_BV, axis=-1, keepdims=True)
    point_B1 = jnp.minimum(uniform_B[:, None] * total_B1, jnp.nextafter(total_B1, jnp.zeros_like(total_B1)))
    return jnp.argmax(cumulative_BV > point_B1, axis=-1).astype(jnp.int32)
