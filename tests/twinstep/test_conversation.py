"""The conversation in the terminal: what the model is given at each turn, and what is printed."""

import io
import sys

import numpy as np
import pytest

from twinstep.config import Config, CorpusConfig
from twinstep.conversation import converse, oldest_to_forget
from twinstep.data import ByteTokenizer
from twinstep.data.chat import encode_spans, render
from twinstep.errors import UserError
from twinstep.generation import GenerateOptions

TOKENIZER = ByteTokenizer("chat")
CONFIG = Config(data=CorpusConfig(sequence_len=256, special_tokens="chat"))
END = TOKENIZER.special["<|assistant_end|>"]


class Model:
    """Says what it is told, one reply after another, and remembers what it was asked."""

    def __init__(self, *replies: str | list[int]):
        self.replies, self.asked = list(replies), []

    def extend(self, prompts, max_tokens, *, seed, stop_token):
        assert stop_token == END
        self.asked.append((prompts[0].tolist(), max_tokens, seed))
        reply = self.replies.pop(0)
        ids = list(reply.encode()) if isinstance(reply, str) else reply
        yield from (np.array([id]) for id in ids[:max_tokens])


def talk(monkeypatch, capfd, model, lines: bytes, sequence_len: int = 256, **options) -> tuple[str, str]:
    """What is written to standard output and to standard error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), "utf-8", "surrogateescape"))
    config = Config(data=CorpusConfig(sequence_len=sequence_len, special_tokens="chat"))
    converse(GenerateOptions(**options), config, TOKENIZER, model.extend)
    out, err = capfd.readouterr()
    return out, err


def ids_of(*texts: str) -> list[int]:
    """The conversation so far, as training would have it, up to where the assistant begins."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate((*texts, "x"))]
    ((ids, _),) = encode_spans([render(messages)], TOKENIZER)
    return ids.tolist()[:-2]


def test_each_turn_is_given_all_that_was_said(monkeypatch, capfd):
    model = Model("two", "é世")
    out, err = talk(monkeypatch, capfd, model, "one\nthree ü\n".encode(), max_tokens=50, seed=7)
    assert (out, err) == ("two\né世\n", "")
    assert model.asked == [(ids_of("one"), 50, 7), (ids_of("one", "two", "three ü"), 50, 8)]


def test_the_prompt_is_said_first(monkeypatch, capfd):
    model = Model("b", "d")
    out, _ = talk(monkeypatch, capfd, model, b"c\n", prompt="a")
    assert out == "b\nd\n"
    assert model.asked[1][0] == ids_of("a", "b", "c")


def test_an_empty_line_ends_it(monkeypatch, capfd):
    assert talk(monkeypatch, capfd, Model("b"), b"a\n \nc\n") == ("b\n", "")
    assert talk(monkeypatch, capfd, Model(), b"") == ("", "")


def test_on_a_terminal_it_says_who_speaks(monkeypatch, capfd):
    lines = iter(["a"])

    def ask(prompt):
        assert prompt == "user: "
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", ask)
    stdin = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdin", stdin)
    for stream in (stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    converse(GenerateOptions(), CONFIG, TOKENIZER, Model("b").extend)
    assert capfd.readouterr().out == "assistant: b\n\n"


def test_a_reply_ends_at_a_bos_token_and_at_the_stop_text(monkeypatch, capfd):
    model = Model([*b"b", TOKENIZER.bos, *b"more"], "")
    assert talk(monkeypatch, capfd, model, b"a\nc\n")[0] == "b\n\n"
    assert model.asked[1][0] == ids_of("a", "b", "c")
    assert talk(monkeypatch, capfd, Model("one. two"), b"a\n", stop=".")[0] == "one\n"


def test_a_reply_that_is_cut_says_so_and_is_closed_in_the_context(monkeypatch, capfd):
    model = Model("abcdef", "d")
    out, err = talk(monkeypatch, capfd, model, b"a\nc\n", max_tokens=3)
    assert out == "abc\nd\n"
    assert err == "(cut after 3 tokens: --max-tokens)\n"
    assert model.asked[1][0] == ids_of("a", "abc", "c")


def test_the_oldest_exchanges_are_left_out_where_the_context_is_full(monkeypatch, capfd):
    model = Model("bb", "dd", "ff")
    out, err = talk(monkeypatch, capfd, model, b"aa\ncc\nee\n", sequence_len=24, max_tokens=4)
    assert out == "bb\ndd\nff\n"
    assert err == "(1 of the oldest exchanges left out: the model was trained on 24 tokens at once)\n"
    assert model.asked[1][0] == ids_of("aa", "bb", "cc")
    assert model.asked[2][0] == ids_of("cc", "dd", "ee")


def test_a_reply_stays_within_what_the_model_was_trained_on(monkeypatch, capfd):
    model = Model("x" * 50)
    out, err = talk(monkeypatch, capfd, model, b"abcd\n", sequence_len=16, max_tokens=200)
    assert out == "x" * 9 + "\n"  # 8 tokens of the prompt; the last token made is not read
    assert err == "(cut after 9 tokens: the tokens that the model was trained on at once)\n"


def test_a_message_longer_than_the_context_is_named_and_the_next_one_answered(monkeypatch, capfd):
    model = Model("b")
    out, err = talk(monkeypatch, capfd, model, b"a" * 30 + b"\nc\n", sequence_len=16)
    assert out == "b\n"
    assert err == "(that message makes 34 tokens, the model was trained on 16 at once; shorten it)\n"
    assert model.asked[0][0] == ids_of("c")


def test_what_must_be_forgotten_leaves_the_rest_room():
    assert oldest_to_forget([], -5) == 0
    assert oldest_to_forget([5, 5, 5], 16) == 0
    assert oldest_to_forget([5, 5, 5], 15) == 1
    assert oldest_to_forget([5, 5, 5], 0) == 3


def test_bytes_that_are_no_text_are_refused(monkeypatch, capfd):
    with pytest.raises(UserError, match="a line of the input is not UTF-8"):
        talk(monkeypatch, capfd, Model(), b"caf\xe9\n")


def test_a_model_without_the_special_tokens_is_refused(capfd):
    with pytest.raises(UserError, match=r"--chat needs the special token <\|user_start\|>, which the model"):
        converse(GenerateOptions(), Config(), ByteTokenizer(), Model().extend)


def test_a_conversation_has_one_reply():
    with pytest.raises(UserError, match="--samples is 2; a conversation with --chat has one reply"):
        GenerateOptions(chat=True, samples=2)
