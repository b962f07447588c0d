"""Text from a trained GPT: `python -m jax_impl.generate --run DIR --prompt TEXT`.

Shapes: B sequences, T time, S size of the cache, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import cpu
from jax_impl.checkpoint import load_params
from jax_impl.compilation_cache import keep_compiled_programs
from jax_impl.decoding import generate_in_chunks
from jax_impl.models import Model, load_tree, make_model
from jax_impl.models.cache import make_cache
from jax_impl.parallel import set_precision
from jax_impl.sampling import sample
from jax_impl.tree import Tree
from twinstep.cli import parse_flags, read_run_config
from twinstep.config import Config, GPTConfig
from twinstep.conversation import converse
from twinstep.data import Tokenizer
from twinstep.errors import run_command
from twinstep.generation import (
    NO_TOKEN,
    GenerateOptions,
    TextStream,
    begin,
    collect_text,
    tokenizer_of,
    trains_on_dialogues,
    uniform_numbers,
    write_text,
)

PREFILL = 64  # tokens of the prompt read at once


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
    not read to its end. A sequence ends before `stop_token`; it doesn't depend on the others.
    The plain form, a dispatch for each token: the command runs `decoding.generate_in_chunks`.
    """
    assert isinstance(config.model, GPTConfig)
    rows, lengths_B = np.arange(len(prompts)), np.array([len(prompt) for prompt in prompts])
    uniform_BT = uniform_numbers(seed, len(prompts), max_tokens)
    size, dtype = int(lengths_B.max()) + max_tokens, getattr(jnp, config.train.dtype)
    cache = make_cache(config.model, len(prompts), size, dtype)
    decode = jax.jit(lambda params, tokens_BT, cache: model.bind(params, {}, train=False).decode(tokens_BT, cache))

    shortest = int(lengths_B.min())
    prompt_BT = jnp.array(np.stack([prompt[:shortest] for prompt in prompts]))
    for start in range(0, shortest, PREFILL):
        logits_BTV, cache = decode(params, prompt_BT[:, start : start + PREFILL], cache)

    ended_B = np.zeros(len(prompts), bool)
    for position in range(shortest, int(lengths_B.max()) + max_tokens):
        made_B = position - lengths_B
        given = [NO_TOKEN if made >= 0 else prompt[position] for made, prompt in zip(made_B, prompts, strict=True)]
        given_B = jnp.array(given)
        uniform_B = jnp.array(uniform_BT[rows, np.clip(made_B, 0, max_tokens - 1)])
        sampled_B = sample(logits_BTV[:, -1], uniform_B, temperature, top_k, top_p)
        next_B = jnp.where(given_B == NO_TOKEN, sampled_B, given_B)
        tokens_B = np.asarray(next_B)
        ended_B |= (made_B >= 0) & (tokens_B == stop_token) | (made_B >= max_tokens)
        if ended_B.all():
            return
        yield np.where(ended_B | (made_B < 0), NO_TOKEN, tokens_B)
        logits_BTV, cache = decode(params, next_B[:, None], cache)


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
    """The prompt and its continuation or, in a run on dialogues, the reply to it; at most `max_tokens` more tokens."""
    ids, end = begin(tokenizer, prompt, chat := trains_on_dialogues(config))
    stream = TextStream(tokenizer)
    tokens = generate_in_chunks(
        model, params, config, [ids], max_tokens, temperature=temperature, seed=seed, stop_token=end
    )
    text = "".join([stream.push(int(tokens_B[0])) for tokens_B in tokens]) + stream.close()
    return prompt + ("\n" if chat else "") + text


def generate_text(options: GenerateOptions) -> list[str]:
    """The prompt and its continuation, `options.samples` times. Raises UserError for what cannot be continued.

    With `options.chat` the reply to the prompt.
    """
    return collect_text(options, *tokens_from_run(options))


def tokens_from_run(options: GenerateOptions) -> tuple[Tokenizer, Iterator[np.ndarray]]:
    """A run's tokenizer, and its model's tokens (samples,) one position after another."""
    _, tokenizer, extend = open_run(options)
    ids, end = begin(tokenizer, options.prompt, options.chat)
    return tokenizer, extend([ids] * options.samples, options.max_tokens, seed=options.seed, stop_token=end)


def open_run(options: GenerateOptions) -> tuple[Config, Tokenizer, Callable[..., Iterator[np.ndarray]]]:
    """A run's configuration, its tokenizer, and `generate` of its model, which takes what follows the configuration."""
    config = read_run_config(options.run_dir)
    keep_compiled_programs(config)
    set_precision(config)
    cpu.keep_freed_memory(config)
    config, weights = load_params(options.run_dir, options.step)
    tokenizer = tokenizer_of(config, options.run_dir)
    model = make_model(config)
    params = load_tree(model.params, weights)
    extend = partial(
        generate_in_chunks,
        model,
        params,
        config,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    return config, tokenizer, extend


def main(argv: list[str]) -> int:
    options = parse_flags("python -m jax_impl.generate", GenerateOptions(), argv)
    if options.chat:
        converse(options, *open_run(options))
    else:
        write_text(options, *tokens_from_run(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
