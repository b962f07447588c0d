import io
import sys

import numpy as np
import pytest

from twinstep.data import ByteTokenizer
from twinstep.errors import UserError
from twinstep.generation import NO_TOKEN, GenerateOptions, TextStream, encode_prompt, uniform_numbers, write_text

TEXT = "aé世😀z"


def parts(text: bytes, stop: str | None = None) -> list[str]:
    stream = TextStream(ByteTokenizer(), stop)
    return [stream.push(byte) for byte in text] + [stream.close()]


def test_a_character_is_held_back_until_it_is_whole():
    assert parts(TEXT.encode()) == ["a", "", "é", "", "", "世", "", "", "", "😀", "z", ""]


def test_bytes_that_cannot_become_text_are_marked():
    assert "".join(parts(b"a\xc3(\xe4\xb8")) == "a�(�"


def test_a_bos_token_and_no_token_add_nothing():
    stream = TextStream(ByteTokenizer())
    assert [stream.push(token) for token in (0xC3, 0xFF, NO_TOKEN, 0xA9)] == ["", "", "", "é"]


def test_text_ends_before_the_stop_text():
    assert parts(b"one\n\n\ntwo", "\n\ntwo") == ["o", "n", "e", "", "", "\n", "", "", "", ""]
    assert "".join(parts(b"abababc", "abc")) == "abab"
    stream = TextStream(ByteTokenizer(), "b")
    assert (stream.push(ord("a")), stream.stopped) == ("a", False)
    assert (stream.push(ord("b")), stream.stopped) == ("", True)
    assert (stream.push(ord("c")), stream.close()) == ("", "")


def test_what_only_began_like_the_stop_text_is_given_out_at_the_end():
    assert "".join(parts(b"xaab", "abc")) == "xaab"


def test_a_prompt_begins_with_the_bos_token():
    assert encode_prompt(ByteTokenizer(), "hé").tolist() == [0xFF, 0x68, 0xC3, 0xA9]
    assert encode_prompt(ByteTokenizer(), "").tolist() == [0xFF]


def test_each_sample_has_its_own_numbers():
    three, one = uniform_numbers(5, 3, 100), uniform_numbers(5, 1, 50)
    assert three.shape == (3, 100)
    assert three.dtype == np.float32
    assert (three >= 0).all()
    assert (three < 1).all()
    assert np.array_equal(three[:1, :50], one)
    assert len(np.unique(three)) == 300
    assert not np.array_equal(one, uniform_numbers(6, 1, 50))


def written(monkeypatch, options: GenerateOptions, tokens: list[list[int]], is_terminal: bool = False) -> bytes:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(out, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    write_text(options, ByteTokenizer(), iter(np.array(tokens)))
    return out.buffer.getvalue()


def test_output_is_utf8_whatever_the_terminal_and_nothing_is_added(monkeypatch):
    tokens = [[byte] for byte in "é\r\n".encode()]
    assert written(monkeypatch, GenerateOptions(prompt="世"), tokens) == "世é\r\n".encode()


def test_samples_are_written_in_turn_each_after_the_prompt(monkeypatch):
    options = GenerateOptions(prompt=">", samples=2)
    assert written(monkeypatch, options, [[97, 65], [NO_TOKEN, 66], [98, NO_TOKEN]]) == b">ab\n>AB"
    assert written(monkeypatch, options, [[97, 65]], is_terminal=True) == b">a\n>A\n"


def test_generation_ends_when_every_sample_has_met_the_stop_text(monkeypatch):
    def endless():
        yield from ([ord(".")], [ord("a")], [ord("\n")])
        raise AssertionError("the text was complete")

    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    write_text(GenerateOptions(stop="\n"), ByteTokenizer(), map(np.array, endless()))
    assert out.buffer.getvalue() == b".a"


@pytest.mark.parametrize(
    ("name", "below", "least", "most", "above"),
    [
        ("max_tokens", 0, 1, 2**20, 2**20 + 1),
        ("temperature", -1e-9, 0.0, 1e9, float("inf")),
        ("top_k", 0, 1, 2**31 - 1, 2**31),
        ("top_p", 0.0, 1e-9, 1.0, 1.0000001),
        ("seed", -1, 0, 2**32 - 1, 2**32),
        ("samples", 0, 1, 2**12, 2**12 + 1),
        ("step", -1, 0, 10**9, None),
    ],
)
def test_every_number_is_held_to_its_bounds(name, below, least, most, above):
    for good in (least, most):
        assert getattr(GenerateOptions(**{name: good}), name) == good
    for bad in (below, above):
        if bad is not None:
            with pytest.raises(UserError, match="--" + name.replace("_", "-")):
                GenerateOptions(**{name: bad})
