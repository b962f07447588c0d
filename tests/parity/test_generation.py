"""The stage `generation`, right as it is; `parity.faults.decoding` changes it."""

import pytest

from parity.check import check_here
from parity.check_configs import subject
from parity.generation import LENGTH, PROMPT, ways
from parity.request import Request
from tests.parity.test_check import tiny_gpt


@pytest.mark.slow
def test_both_frameworks_decode_what_they_compute_at_once():
    result = check_here(Request(tiny_gpt(3), inits=("nonzero",), generation=True))
    stage = result.stages["generation"]
    assert stage.verdict == "agrees", result.sentence
    assert {t.tensor for t in result.tensors if t.stage == "generation"} == {
        "torch's own prefill",
        "torch's own decoding",
        "logits, forward",
        "logits, plain attention",
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
