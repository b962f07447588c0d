"""The stage `generation`: a GPT's prefill and decoding against its own full forward pass, and the tokens of both sides.

The context is longer than a block of attention and than two chunks of the prompt. Shapes: B sequences, T time, V
vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_impl import decoding
from jax_impl import generate as jax_generate
from jax_impl import sampling as jax_sampling
from jax_impl.models import Model
from jax_impl.models import cache as jax_cache
from jax_impl.models import make_model as make_jax_model
from parity.budget import Tolerance
from parity.capture import to_numpy
from parity.entries import Key
from parity.jax_side import JaxSide
from parity.ledger import Ledger
from parity.reference import Reference
from parity.side import Named
from torch_ref import generate as torch_generate
from torch_ref import sampling as torch_sampling
from torch_ref.models import cache as torch_cache
from torch_ref.models import load_weights, make_model
from twinstep.config import Config, GPTConfig
from twinstep.generation import NO_TOKEN

SEQUENCES, LENGTH, PROMPT = 2, 192, 128  # tokens of the whole, and of these in the prompt: two chunks
NEW_TOKENS = 24
SAME = Tolerance("exact", 0.0, "one number in [0, 1) decides one token, in either framework")
SAMPLING: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.9}


def compare_generation(ledger: Ledger, init: str, port: JaxSide, reference: Reference, config: Config) -> None:
    """Logits position by position, tokens likeliest by the same logits and, in float64, tokens sampled.

    All from the weights at the end of the reference's run. Every kind of logits is compared with the reference's full
    forward pass, its own decoding too. In a lower precision sampled tokens prove nothing: one rounding may change them.
    """
    if not isinstance(config.model, GPTConfig):
        return
    assert config.model.vocab_size is not None
    step, seed = config.train.steps, config.train.seed
    tokens_BT = np.random.default_rng(seed).integers(config.model.vocab_size, size=(SEQUENCES, LENGTH), dtype=np.int32)
    model = torch_model(config, reference.end.weights)
    params = port.load(reference.end).params
    ours, theirs = torch_logits(model, config, tokens_BT), jax_logits(port.model, params, config, tokens_BT)
    plain = np.asarray(jax.jit(forward_of(make_jax_model(config)))(params, tokens_BT))
    wide = replace(config, train=replace(config.train, dtype="float64"))
    truth = ours if wide == config else torch_logits(torch_model(wide, reference.end.weights), wide, tokens_BT)
    full, true = ours["forward"], truth["forward"]
    for name in ("prefill", "decoding"):
        ledger.enter(Key("generation", f"torch's own {name}", init), step, full, ours[name], true)
    ledger.enter(Key("generation", "logits, plain attention", init), step, full, plain, true)
    for name in ("forward", "prefill", "decoding"):
        ledger.enter(Key("generation", f"logits, {name}", init), step, full, theirs[name], true)
    logits_BV, zeros_B = full[:, -1], np.zeros(SEQUENCES, np.float32)
    likeliest = torch_sampling.sample(torch.from_numpy(logits_BV), torch.from_numpy(zeros_B), 0.0, None, 1.0).numpy()
    found = np.asarray(jax_sampling.sample(jnp.asarray(logits_BV), jnp.asarray(zeros_B), 0.0, None, 1.0))
    ledger.enter(Key("generation", "likeliest tokens", init), step, likeliest, found, tolerance=SAME)
    if config.train.dtype == "float64":
        compare_tokens(ledger, Key("generation", "sampled tokens", init), step, port, params, model, config, tokens_BT)


def compare_tokens(
    ledger: Ledger, key: Key, step: int, port: JaxSide, params: Any, model: Any, config: Config, tokens_BT: np.ndarray
) -> None:
    """Tokens that both frameworks' functions sample, prompts of two lengths, until each has met a certain token."""
    prompts = [tokens_BT[0, :PROMPT], tokens_BT[1, : PROMPT + 2]]
    asked: dict[str, Any] = {"max_tokens": NEW_TOKENS, "seed": config.train.seed, **SAMPLING}
    chosen_TB = np.stack(list(torch_generate.generate(model, config, prompts, **asked)))
    asked["stop_token"] = next(iter(sorted(set(chosen_TB[:, 0]) & set(chosen_TB[:, 1]) - {NO_TOKEN})), None)
    chosen_TB = np.stack(list(torch_generate.generate(model, config, prompts, **asked)))
    decoding._compiled.cache_clear()  # the port may have been changed since
    for generate in (jax_generate.generate, decoding.generate_in_chunks):
        found_TB = np.stack(list(generate(port.model, params, config, prompts, **asked)))
        by = key._replace(tensor=f"{key.tensor}, {generate.__name__}")
        ledger.enter(by, step, chosen_TB, found_TB.astype(chosen_TB.dtype), tolerance=SAME)


def torch_model(config: Config, weights: Named) -> Any:
    """torch's GPT in eval mode with these weights."""
    model = make_model(config).eval()
    load_weights(model, weights)
    return model


@torch.no_grad()
def torch_logits(model: Any, config: Config, tokens_BT: np.ndarray) -> Named:
    """All logits (B, T, V) by the full forward pass; by prefill, chunk by chunk; and by decoding after the prompt."""
    tokens = torch.from_numpy(tokens_BT).long()
    make_cache = partial(torch_cache.make_cache, model.config, SEQUENCES, LENGTH, getattr(torch, config.train.dtype))
    return {"forward": to_numpy(model(tokens)), **decoded(model.decode, make_cache, tokens, to_numpy)}


def jax_logits(model: Model, params: Any, config: Config, tokens_BT: np.ndarray) -> Named:
    """The same in JAX."""
    assert isinstance(config.model, GPTConfig)
    forward = jax.jit(forward_of(model))

    @jax.jit
    def decode(params: Any, tokens_BT: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return model.bind(params, {}, train=False).decode(tokens_BT, cache)

    make_cache = partial(jax_cache.make_cache, config.model, SEQUENCES, LENGTH, jnp.dtype(config.train.dtype))
    logits_BTV = np.asarray(forward(params, tokens_BT))
    return {"forward": logits_BTV, **decoded(partial(decode, params), make_cache, tokens_BT, np.asarray)}


def forward_of(model: Model) -> Callable[[Any, jax.Array], jax.Array]:
    """The full forward pass, (params, tokens (B, T)) -> logits (B, T, V)."""
    return lambda params, tokens_BT: model.bind(params, {}, train=False)(tokens_BT)


def decoded(
    decode: Callable[..., tuple[Any, Any]], make_cache: Callable[[], Any], tokens_BT: Any, to_host: Callable[..., Any]
) -> Named:
    """Logits (B, T, V) by each way; `decode(tokens, cache)` returns those of its tokens, and the cache with them."""
    found = {}
    for name, ends in ways().items():
        cache, parts = make_cache(), []
        for start, end in zip([0, *ends], ends, strict=False):
            logits_BTV, cache = decode(tokens_BT[:, start:end], cache)
            parts.append(to_host(logits_BTV))
        found[name] = np.concatenate(parts, axis=1)
    return found


def ways() -> dict[str, list[int]]:
    """Where each call of `decode` ends: all in chunks, or the prompt in chunks and then token by token."""
    chunk = torch_generate.PREFILL
    return {
        "prefill": [*range(chunk, LENGTH + 1, chunk)],
        "decoding": [*range(chunk, PROMPT, chunk), *range(PROMPT, LENGTH + 1)],
    }
