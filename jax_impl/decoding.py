"""`generate` with fewer dispatches, as the command runs it: the prompt in chunks of one length, several tokens at once.

Two compiled functions do all the work, whatever the prompts: one feeds PREFILL tokens of the prompts to the model, one
samples CHUNK tokens, one after another. Only a cache of another size compiles them again, and its sizes are few.

Shapes: B sequences, T time, S size of the cache, V vocabulary.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import cpu
from jax_impl.models import Model
from jax_impl.models.cache import Cache, make_cache
from jax_impl.sampling import sample
from jax_impl.tree import Tree
from twinstep.config import Config, GPTConfig
from twinstep.generation import NO_TOKEN, uniform_numbers

PREFILL = 64  # tokens of the prompt read at once
CHUNK = 8  # tokens between two returns to Python; a return costs a fifth of the time of a small model's token


def generate_in_chunks(
    model: Model,
    params: Tree,
    config: Config,
    prompts: Sequence[np.ndarray],
    max_tokens: int,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    stop_token: int | None = None,
) -> Iterator[np.ndarray]:
    """`generate.generate`: the same arguments and the same tokens, in fewer dispatches."""
    assert isinstance(config.model, GPTConfig)
    rows, lengths_B = np.arange(len(prompts)), np.array([len(prompt) for prompt in prompts])
    uniform_BT = uniform_numbers(seed, len(prompts), max_tokens)
    read, choose = _compiled(model.graphdef, temperature, top_k, top_p)
    size, dtype = _cache_size(int(lengths_B.max()) + max_tokens), jnp.dtype(config.train.dtype)
    cache = make_cache(config.model, len(prompts), size, dtype)
    params = _transpose(params)

    shortest = int(lengths_B.min())
    for start in range(0, shortest, PREFILL):
        count = min(PREFILL, shortest - start)
        chunk_BT = np.zeros((len(prompts), PREFILL), np.int32)
        chunk_BT[:, :count] = [prompt[start : start + count] for prompt in prompts]
        logits_BV, cache = read(params, cache, chunk_BT, count)

    ended_B = np.zeros(len(prompts), bool)
    # The last chunk may be longer than was asked for and run past the cache: it overwrites its end, and is not yielded.
    for start in range(shortest, int(lengths_B.max()) + max_tokens, CHUNK):
        made_TB = np.arange(start, start + CHUNK)[:, None] - lengths_B
        given_TB = np.full(made_TB.shape, NO_TOKEN, np.int32)
        for row, prompt in enumerate(prompts):
            rest = prompt[start : start + CHUNK]
            given_TB[: len(rest), row] = rest
        uniform_TB = uniform_BT[rows, np.clip(made_TB, 0, max_tokens - 1)]
        tokens_TB, logits_BV, cache = choose(params, cache, logits_BV, given_TB, uniform_TB)
        for made_B, tokens_B in zip(made_TB, np.asarray(tokens_TB), strict=True):
            ended_B |= (made_B >= 0) & (tokens_B == stop_token) | (made_B >= max_tokens)
            if ended_B.all():
                return
            yield np.where(ended_B | (made_B < 0), NO_TOKEN, tokens_B)


@functools.lru_cache(maxsize=16)
def _compiled(graphdef: Any, temperature: float, top_k: int | None, top_p: float) -> tuple[Any, Any]:
    """The two compiled functions; they take what `_transpose` gives. Cached, so that samples in a run compile once."""
    model = Model(graphdef, {}, {})
    jit = functools.partial(jax.jit, compiler_options=cpu.compiler_options())

    @functools.partial(jit, donate_argnums=1)
    def read(transposed: Tree, cache: Cache, chunk_BT: jax.Array, count: jax.Array) -> tuple[jax.Array, Cache]:
        """Logits (B, V) after the first `count` tokens of the chunk, and the cache with these in it.

        The padding's keys are past the cache's length: masked, and overwritten by the tokens that follow.
        """
        logits_BTV, filled = model.bind(_transpose(transposed), {}, train=False).decode(chunk_BT, cache)
        logits_BV = jax.lax.dynamic_index_in_dim(logits_BTV, count - 1, axis=1, keepdims=False)
        return logits_BV, filled._replace(length=cache.length + count)

    @functools.partial(jit, donate_argnums=(1, 2))
    def choose(
        transposed: Tree, cache: Cache, logits_BV: jax.Array, given_TB: jax.Array, uniform_TB: jax.Array
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """T tokens (T, B), given or, where that is NO_TOKEN, sampled; the logits after them; the cache with them."""

        def choose_one(carry: tuple[jax.Array, Cache], numbers: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            (logits_BV, cache), (given_B, uniform_B) = carry, numbers
            sampled_B = sample(logits_BV, uniform_B, temperature, top_k, top_p)
            tokens_B = jnp.where(given_B == NO_TOKEN, sampled_B, given_B)
            logits_BTV, cache = model.bind(_transpose(transposed), {}, train=False).decode(tokens_B[:, None], cache)
            return (logits_BTV[:, 0], cache), tokens_B

        (logits_BV, cache), tokens_TB = jax.lax.scan(choose_one, (logits_BV, cache), (given_TB, uniform_TB))
        return tokens_TB, logits_BV, cache

    return read, choose


def _transpose(params: Tree) -> Tree:
    """On a CPU, all weight matrices but the embedding's table transposed; elsewhere unchanged. Its own inverse.

    A product with a single token does little but read the matrix, and the CPU's kernels read a transposed one in half
    the time.
    """
    if jax.default_backend() != "cpu":
        return params
    return {name: part if name == "wte" else jax.tree.map(jnp.transpose, part) for name, part in params.items()}


def _cache_size(tokens: int) -> int:
    """The next power of two or the number half-way to it, a multiple of PREFILL."""
    power = max(PREFILL, 1 << (tokens - 1).bit_length())
    half_way = 3 * power // 4
    return half_way if tokens <= half_way and half_way % PREFILL == 0 else power
