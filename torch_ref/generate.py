"""Text from a trained GPT: `python -m torch_ref.generate --run DIR --prompt TEXT`.

Shapes: B sequences, T time, S size of the cache, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from torch_ref.checkpoint import load_params
from torch_ref.models import load_weights, make_model
from torch_ref.models.cache import make_cache
from torch_ref.models.gpt import GPT
from torch_ref.parallel import set_precision
from torch_ref.processes import device
from torch_ref.sampling import sample
from twinstep.cli import parse_flags, read_run_config
from twinstep.config import Config
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


@torch.no_grad()
def generate(
    model: GPT,
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

    Yields tokens (B,) int64: NO_TOKEN for a sequence that has ended or whose prompt is longer than the shortest and
    not read to its end. A sequence ends before `stop_token`; it doesn't depend on the others.
    """
    rows, lengths_B = np.arange(len(prompts)), np.array([len(prompt) for prompt in prompts])
    uniform_BT = uniform_numbers(seed, len(prompts), max_tokens)
    size, dtype = int(lengths_B.max()) + max_tokens, getattr(torch, config.train.dtype)
    with (device := model.lm_head.weight.device):
        cache = make_cache(model.config, len(prompts), size, dtype)

    shortest = int(lengths_B.min())
    prompt_BT = torch.tensor(np.stack([prompt[:shortest] for prompt in prompts]), device=device)
    for start in range(0, shortest, PREFILL):
        logits_BTV, cache = model.decode(prompt_BT[:, start : start + PREFILL], cache)

    ended_B = np.zeros(len(prompts), bool)
    for position in range(shortest, int(lengths_B.max()) + max_tokens):
        made_B = position - lengths_B
        given = [NO_TOKEN if made >= 0 else prompt[position] for made, prompt in zip(made_B, prompts, strict=True)]
        given_B = torch.tensor(given, device=device)
        uniform_B = torch.tensor(uniform_BT[rows, np.clip(made_B, 0, max_tokens - 1)], device=device)
        sampled_B = sample(logits_BTV[:, -1], uniform_B, temperature, top_k, top_p)
        next_B = torch.where(given_B == NO_TOKEN, sampled_B, given_B)
        tokens_B = next_B.numpy(force=True)
        ended_B |= (made_B >= 0) & (tokens_B == stop_token) | (made_B >= max_tokens)
        if ended_B.all():
            return
        yield np.where(ended_B | (made_B < 0), NO_TOKEN, tokens_B)
        logits_BTV, cache = model.decode(next_B[:, None], cache)


def sample_text(
    model: GPT, config: Config, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, seed: int
) -> str:
    """The prompt and its continuation or, in a run on dialogues, the reply to it; at most `max_tokens` more tokens."""
    ids, end = begin(tokenizer, prompt, chat := trains_on_dialogues(config))
    stream = TextStream(tokenizer)
    tokens = generate(model, config, [ids], max_tokens, temperature=temperature, seed=seed, stop_token=end)
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
    set_precision(config)
    config, weights = load_params(options.run_dir, options.step)
    tokenizer = tokenizer_of(config, options.run_dir)
    model = make_model(config).eval()
    assert isinstance(model, GPT)
    load_weights(model, weights)
    model.to(device())
    extend = partial(generate, model, config, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    return config, tokenizer, extend


def main(argv: list[str]) -> int:
    options = parse_flags("python -m torch_ref.generate", GenerateOptions(), argv)
    if options.chat:
        converse(options, *open_run(options))
    else:
        write_text(options, *tokens_from_run(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
