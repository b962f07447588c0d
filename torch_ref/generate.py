"""Text from a trained GPT: `python -m torch_ref.generate --run DIR --prompt TEXT`.

Shapes: B sequences, T time, S size of the cache, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from torch_ref.checkpoint import load_params
from torch_ref.models import load_weights, make_model
from torch_ref.models.gpt import GPT, make_cache
from twinstep.cli import parse_flags
from twinstep.config import Config
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
GREEDY_BELOW = 1e-6  # a smaller temperature is taken as 0: dividing by it may overflow


def filter_logits(logits_BV: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """-inf for all but the `top_k` largest logits, and of these all but the nucleus of probability `top_p`.

    The nucleus is the smallest set of likeliest tokens with at least that probability (arXiv:1904.09751). Tokens as
    likely as the last one that stays, stay too.
    """
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if top_p < 1:
        sorted_BV = logits_BV.sort(dim=-1, descending=True).values
        probability_BV = sorted_BV.softmax(dim=-1)
        likelier_BV = probability_BV.cumsum(dim=-1) - probability_BV
        least_B1 = sorted_BV.masked_fill(likelier_BV >= top_p, torch.inf).amin(dim=-1, keepdim=True)
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    return logits_BV


def sample(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_k: int | None, top_p: float
) -> torch.Tensor:
    """logits (B, V), numbers in [0, 1) (B,) -> tokens (B,) int64, by inverting the cumulative distribution.

    Temperature comes before the filters. At temperature 0 the likeliest token, the first of equals.
    """
    if temperature < GREEDY_BELOW:
        return logits_BV.argmax(dim=-1)
    probability_BV = filter_logits(logits_BV / temperature, top_k, top_p).softmax(dim=-1)
    # A sum in another order can grow where nothing is added: only tokens that have a probability are chosen.
    cumulative_BV = probability_BV.cumsum(dim=-1).masked_fill(probability_BV == 0, 0)
    total_B1 = cumulative_BV.amax(dim=-1, keepdim=True)
    point_B1 = torch.minimum(uniform_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return (cumulative_BV > point_B1).to(torch.uint8).argmax(dim=-1)


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
    not read to its end. A sequence ends before `stop_token`; it doesn't depend on those beside it.
    """
    device = model.lm_head.weight.device
    rows, lengths_B = np.arange(len(prompts)), np.array([len(prompt) for prompt in prompts])
    uniform_BT = uniform_numbers(seed, len(prompts), max_tokens)
    with device:
        size, dtype = int(lengths_B.max()) + max_tokens, getattr(torch, config.train.dtype)
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
    """The prompt and its continuation, up to the end of the document or `max_tokens` more tokens."""
    ids = encode_prompt(tokenizer, prompt)
    stream = TextStream(tokenizer)
    tokens = generate(model, config, [ids], max_tokens, temperature=temperature, seed=seed, stop_token=tokenizer.bos)
    return prompt + "".join([stream.push(int(tokens_B[0])) for tokens_B in tokens]) + stream.close()


def main(argv: list[str]) -> int:
    options = parse_flags("python -m torch_ref.generate", GenerateOptions(), argv)
    config, weights = load_params(options.run_dir, options.step)
    tokenizer = tokenizer_of(config, options.run_dir)
    model = make_model(config).eval()
    assert isinstance(model, GPT)
    load_weights(model, weights)
    tokens = generate(
        model,
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
