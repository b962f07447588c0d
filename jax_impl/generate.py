"""Text from a trained GPT: `python -m jax_impl.generate --run DIR --prompt TEXT`.

Shapes: B sequences, T time, S size of the cache, V vocabulary.

Two compiled functions do all the work, whatever the prompts: one reads a piece of PREFILL tokens, one chooses and
reads WRITTEN tokens, one after another. Only the size of the cache, rounded up to one of few, can ask for new ones.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import cpu
from jax_impl.checkpoint import load_params
from jax_impl.models import Model, load_tree, make_model
from jax_impl.models.gpt import Cache, make_cache
from jax_impl.parallel import set_precision
from jax_impl.tree import Tree
from twinstep.cli import parse_flags, read_run_config
from twinstep.config import Config, GPTConfig
from twinstep.data import Tokenizer
from twinstep.errors import run_command
from twinstep.generation import (
    NO_TOKEN,
    GenerateOptions,
    TextStream,
    encode_prompt,
    tokenizer_of,
    uniform_numbers,
    write_text,
)

PREFILL = 64  # tokens of the prompt read at once
WRITTEN = 8  # tokens between two returns to Python, a return costing as much as a fifth of a small model's token
GREEDY_BELOW = 1e-6  # a smaller temperature is taken as 0: dividing by it may overflow


def filter_logits(logits_BV: jax.Array, top_k: int | None, top_p: float) -> jax.Array:
    """-inf for all but the `top_k` largest logits, and of these all but the nucleus of probability `top_p`.

    The nucleus is the smallest set of likeliest tokens with at least that probability (arXiv:1904.09751). Tokens as
    likely as the last one that stays, stay too.
    """
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        likelier_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        least_B1 = jnp.min(jnp.where(likelier_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
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
    # A sum in another order can grow where nothing is added: only tokens that have a probability are chosen.
    cumulative_BV = jnp.where(probability_BV > 0, jnp.cumsum(probability_BV, axis=-1), 0)
    total_B1 = jnp.max(cumulative_BV, axis=-1, keepdims=True)
    point_B1 = jnp.minimum(uniform_B[:, None] * total_B1, jnp.nextafter(total_B1, jnp.zeros_like(total_B1)))
    return jnp.argmax(cumulative_BV > point_B1, axis=-1).astype(jnp.int32)


def generate(
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
    """Continues B prompts, each (T,) int with T >= 1 of its own, by at most `max_tokens` tokens.

    Yields tokens (B,) int32: NO_TOKEN for a sequence that has ended or whose prompt is longer than the shortest and
    not read to its end. A sequence ends before `stop_token`; it doesn't depend on those beside it.
    """
    assert isinstance(config.model, GPTConfig)
    rows, lengths_B = np.arange(len(prompts)), np.array([len(prompt) for prompt in prompts])
    uniform_BT = uniform_numbers(seed, len(prompts), max_tokens)
    read, choose = _compiled(model.graphdef, temperature, top_k, top_p)
    size, dtype = _cache_size(int(lengths_B.max()) + max_tokens), jnp.dtype(config.train.dtype)
    cache = make_cache(config.model, len(prompts), size, dtype)
    params = _turn(params)

    shortest = int(lengths_B.min())
    for start in range(0, shortest, PREFILL):
        count = min(PREFILL, shortest - start)
        piece_BT = np.zeros((len(prompts), PREFILL), np.int32)
        piece_BT[:, :count] = [prompt[start : start + count] for prompt in prompts]
        logits_BV, cache = read(params, cache, piece_BT, count)

    ended_B = np.zeros(len(prompts), bool)
    # The last tokens may be more than were asked for, and past the cache: they overwrite its end, and nobody sees them.
    for start in range(shortest, int(lengths_B.max()) + max_tokens, WRITTEN):
        made_TB = np.arange(start, start + WRITTEN)[:, None] - lengths_B
        given_TB = np.full(made_TB.shape, NO_TOKEN, np.int32)
        for row, prompt in enumerate(prompts):
            rest = prompt[start : start + WRITTEN]
            given_TB[: len(rest), row] = rest
        uniform_TB = uniform_BT[rows, np.clip(made_TB, 0, max_tokens - 1)]
        tokens_TB, logits_BV, cache = choose(params, cache, logits_BV, given_TB, uniform_TB)
        for made_B, tokens_B in zip(made_TB, np.asarray(tokens_TB), strict=True):
            ended_B |= (made_B >= 0) & (tokens_B == stop_token) | (made_B >= max_tokens)
            if ended_B.all():
                return
            yield np.where(ended_B | (made_B < 0), NO_TOKEN, tokens_B)


def sample_text(
    model: Model,
    params: Tree,
    config: Config,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """The prompt and its continuation, up to the end of the document or `max_tokens` more tokens."""
    ids = encode_prompt(tokenizer, prompt)
    stream = TextStream(tokenizer)
    tokens = generate(
        model, params, config, [ids], max_tokens, temperature=temperature, seed=seed, stop_token=tokenizer.bos
    )
    return prompt + "".join([stream.push(int(tokens_B[0])) for tokens_B in tokens]) + stream.close()


@functools.lru_cache(maxsize=16)
def _compiled(graphdef: Any, temperature: float, top_k: int | None, top_p: float):
    """The two compiled functions, of parameters from `_turn`; kept, so that samples during a run compile once."""
    model = Model(graphdef, {}, {})
    jit = functools.partial(jax.jit, compiler_options=cpu.compiler_options())

    @functools.partial(jit, donate_argnums=1)
    def read(turned: Tree, cache: Cache, piece_BT: jax.Array, count: jax.Array) -> tuple[jax.Array, Cache]:
        """Logits (B, V) behind the first `count` tokens of the piece, and the cache with these in it.

        What the padding leaves in the cache lies past its length: never seen, and overwritten by what follows.
        """
        logits_BTV, filled = model.bind(_turn(turned), {}, train=False).decode(piece_BT, cache)
        logits_BV = jax.lax.dynamic_index_in_dim(logits_BTV, count - 1, axis=1, keepdims=False)
        return logits_BV, filled._replace(length=cache.length + count)

    @functools.partial(jit, donate_argnums=(1, 2))
    def choose(
        turned: Tree, cache: Cache, logits_BV: jax.Array, given_TB: jax.Array, uniform_TB: jax.Array
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """T tokens (T, B), the given ones, or sampled in place of NO_TOKEN; the logits behind; the cache with them."""

        def choose_one(carry: tuple[jax.Array, Cache], numbers: tuple[jax.Array, jax.Array]):
            (logits_BV, cache), (given_B, uniform_B) = carry, numbers
            sampled_B = sample(logits_BV, uniform_B, temperature, top_k, top_p)
            tokens_B = jnp.where(given_B == NO_TOKEN, sampled_B, given_B)
            logits_BTV, cache = model.bind(_turn(turned), {}, train=False).decode(tokens_B[:, None], cache)
            return (logits_BTV[:, 0], cache), tokens_B

        (logits_BV, cache), tokens_TB = jax.lax.scan(choose_one, (logits_BV, cache), (given_TB, uniform_TB))
        return tokens_TB, logits_BV, cache

    return read, choose


def _turn(params: Tree) -> Tree:
    """On a CPU all weights of products transposed, or back: its kernels take half as long to read them in this order.

    A matrix that meets a single token is read once for each, and little else is done.
    """
    if jax.default_backend() != "cpu":
        return params
    return {name: part if name == "wte" else jax.tree.map(jnp.transpose, part) for name, part in params.items()}


def _cache_size(tokens: int) -> int:
    """The next power of two or the number half-way to it, a multiple of PREFILL."""
    power = max(PREFILL, 1 << (tokens - 1).bit_length())
    half_way = 3 * power // 4
    return half_way if tokens <= half_way and half_way % PREFILL == 0 else power


def main(argv: list[str]) -> int:
    options = parse_flags("python -m jax_impl.generate", GenerateOptions(), argv)
    config = read_run_config(options.run_dir)
    set_precision(config)
    cpu.keep_freed_memory(config)
    config, weights = load_params(options.run_dir, options.step)
    tokenizer = tokenizer_of(config, options.run_dir)
    model = make_model(config)
    tokens = generate(
        model,
        load_tree(model.params, weights),
        config,
        [encode_prompt(tokenizer, options.prompt)] * options.samples,
        options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop_token=tokenizer.bos,
    )
    write_text(options, tokenizer, tokens)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
