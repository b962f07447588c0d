"""The stage `generation`: right as it is, and wrong where decoding is changed by hand."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from jax_impl import decoding, sampling
from jax_impl.models import cache, gpt
from parity.check import check_here
from parity.check_configs import subject
from parity.faults.fault import swapped
from parity.generation import LENGTH, PROMPT, ways
from parity.request import Request
from tests.parity.test_check import tiny_gpt

pytestmark = pytest.mark.slow


def found(around=None, dtype="float64"):
    config = tiny_gpt(3)
    config = replace(config, train=replace(config.train, dtype=dtype))
    request = Request(config, inits=("nonzero",), generation=True)
    return check_here(request, **({} if around is None else {"around": around}))


def test_both_frameworks_decode_what_they_compute_at_once():
    result = found()
    stage = result.stages["generation"]
    assert stage.verdict == "agrees", result.sentence
    assert {t.tensor for t in result.tensors if t.stage == "generation"} == {
        "torch's own prefill",
        "torch's own decoding",
        "logits, forward",
        "logits, prefill",
        "logits, decoding",
        "likeliest tokens",
        "sampled tokens, generate",
        "sampled tokens, generate_in_chunks",
    }


def test_the_context_is_longer_than_a_block_of_attention_and_decoding_goes_token_by_token():
    ends = ways()
    assert LENGTH > PROMPT >= 128
    assert all(way[-1] == LENGTH for way in ends.values())
    assert ends["decoding"][-3:] == [LENGTH - 2, LENGTH - 1, LENGTH]


def test_only_gpt_generates():
    assert check_here(Request(subject("linear", steps=3), generation=True)).stages["generation"].verdict == "unchecked"


cached_attention, sample = cache.cached_attention, sampling.sample


def one_too_many(q, k, v, block_cache, start):
    """Sees the key after its own."""
    return cached_attention(q, k, v, block_cache, start + 1)


def always_from_zero(self, start, length, size):
    return rotary(self, 0, length, size)


rotary = gpt.GPT.rotary


def sampled_elsewhere(logits, uniform, *how):
    return sample(logits, jnp.where(uniform < 0.5, uniform, 1 - uniform), *how)


FAULTS = {
    "a cache written one place late": (lambda: swapped(cached_attention, one_too_many), "logits, prefill"),
    "rotary positions from zero": (lambda: mock.patch.object(gpt.GPT, "rotary", always_from_zero), "logits, prefill"),
    "another use of the random number": (lambda: swapped(sample, sampled_elsewhere), "sampled tokens, generate"),
    "the chunk's last token lost": (
        lambda: mock.patch.object(decoding, "PREFILL", 32),
        None,  # other chunks, the same tokens
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_decoding_is_found_there_and_nowhere_before(name):
    around, tensor = FAULTS[name]
    jax.clear_caches()
    first = found(around).first_divergence
    assert (first and (first.stage, first.tensor)) == (tensor and ("generation", tensor))
