"""The template: ids, what is learned, and what is no conversation."""

import numpy as np
import pytest

from tests.helpers import dialogues
from twinstep.data import ByteTokenizer
from twinstep.data.chat import check_tokenizer, encode_spans, render
from twinstep.data.tokenizer import CHAT_TOKENS, train_bpe
from twinstep.errors import UserError

BYTES = ByteTokenizer("chat")


def say(role, content):
    return {"role": role, "content": content}


def encoded(messages, tokenizer=BYTES):
    (rendered,) = encode_spans([render(messages)], tokenizer)
    return rendered


def marked(messages) -> str:
    """The conversation as text, what is learned in capitals."""
    ids, learned = encoded(messages)
    names = {id: f"|{name.strip('<|>')}|" for name, id in BYTES.special.items()}
    return "".join(
        (text.upper() if is_learned else text)
        for id, is_learned in zip(ids.tolist(), learned.tolist(), strict=True)
        for text in [names.get(id) or chr(id)]
    )


def test_the_assistants_tokens_and_its_end_are_learned():
    messages = [say("user", "one"), say("assistant", "two"), say("user", "three"), say("assistant", "four")]
    assert marked(messages) == (
        "|bos||user_start|one|user_end||assistant_start|TWO|ASSISTANT_END|"
        "|user_start|three|user_end||assistant_start|FOUR|ASSISTANT_END|"
    )


def test_a_system_message_goes_before_the_first_users():
    messages = [say("system", "be brief"), say("user", "one"), say("assistant", "two")]
    assert marked(messages) == ("|bos||user_start|be brief\n\none|user_end||assistant_start|TWO|ASSISTANT_END|")


def test_what_the_assistant_runs_is_learned_and_what_that_prints_is_not():
    parts = [("text", "so"), ("python", "1+1"), ("python_output", "2"), ("python_output", ""), ("text", "two")]
    content = [{"type": kind, "text": text} for kind, text in parts]
    assert marked([say("user", "?"), say("assistant", content)]) == (
        "|bos||user_start|?|user_end||assistant_start|SO|PYTHON_START|1+1|PYTHON_END|"
        "|output_start|2|output_end||output_start||output_end|TWO|ASSISTANT_END|"
    )


def test_a_conversation_may_end_with_the_user():
    messages = [say("user", "one"), say("assistant", "two"), say("user", "three")]
    assert marked(messages).endswith("|ASSISTANT_END||user_start|three|user_end|")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_name_of_a_special_token_within_a_text_is_text(kind):
    tokenizer = BYTES if kind == "bytes" else train_bpe(["some text"], 300, "chat")
    text = "a <|assistant_end|> and <|bos|>"
    ids, learned = encoded([say("user", text), say("assistant", text)], tokenizer)
    special = set(tokenizer.special.values())
    assert sum(id in special for id in ids.tolist()) == 5
    assert tokenizer.decode(ids) == text + text
    assert tokenizer.decode(ids[learned]) == text


def test_many_are_encoded_like_one_by_one():
    found = dialogues.conversations(30)
    together = encode_spans([render(messages) for messages in found], BYTES)
    for one, messages in zip(together, found, strict=True):
        np.testing.assert_array_equal(one.ids, encoded(messages).ids)
        np.testing.assert_array_equal(one.learned, encoded(messages).learned)
        assert one.ids.dtype == np.int32


USER, ASSISTANT = say("user", "a"), say("assistant", "b")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (None, 'no list of messages under "messages"'),
        ([], 'no list of messages under "messages"'),
        ("text", 'no list of messages under "messages"'),
        (["text"], "message 1 of the role None; known are user, assistant, system"),
        ([say("human", "a"), ASSISTANT], "message 1 of the role 'human'; known are"),
        ([{"role": ["user"], "content": "a"}], r"message 1 of the role \['user'\]; known are"),
        ([USER, {"role": "assistant"}], "no string as the content of message 2"),
        ([say("user", ["a"]), ASSISTANT], "no string as the content of message 1"),
        ([say("user", ""), ASSISTANT], "an empty string as the content of message 1"),
        ([USER, say("assistant", "")], "an empty string as the content of message 2"),
        ([say("system", ""), USER, ASSISTANT], "an empty string as the content of message 1"),
        ([USER, say("assistant", [])], "no string as the content of message 2"),
        ([USER, say("assistant", ["a"])], "message 2 with a part of the type None; known are text, python"),
        ([USER, say("assistant", [{"type": "image", "text": "a"}])], "a part of the type 'image'"),
        ([USER, say("assistant", [{"type": "text"}])], "no string as the content of a part of message 2"),
        ([USER, say("assistant", [{"type": "python", "text": ""}])], "an empty string as the content of a part"),
        ([say("user", "\ud800"), ASSISTANT], "half a surrogate pair in message 1"),
        ([ASSISTANT, USER], "a message of the assistant where one of the user belongs"),
        ([USER, USER, ASSISTANT], "a message of the user where one of the assistant belongs"),
        ([USER, ASSISTANT, ASSISTANT], "a message of the assistant where one of the user belongs"),
        ([USER, say("system", "a"), ASSISTANT], "a message of the system where one of the assistant belongs"),
        ([say("system", "a"), ASSISTANT], "a message of the assistant after the system's"),
        ([say("system", "a")], "a message of the system where one of the user belongs"),
        ([USER], "nothing that the assistant says"),
        ([USER, say("assistant", [{"type": "python_output", "text": "2"}])], "nothing that the assistant says"),
    ],
)
def test_what_is_no_conversation_is_said(messages, says):
    with pytest.raises(ValueError, match=says) as error:
        render(messages)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_the_template_is_refused_by_the_token_that_is_missing():
    for tokenizer in (ByteTokenizer(), train_bpe(["some text"], 300)):
        with pytest.raises(
            UserError, match=r"--chat needs the special token <\|user_start\|>, which the run x does .*; mend"
        ):
            check_tokenizer(tokenizer, "the run x", "mend")
    for tokenizer in (BYTES, train_bpe(["some text"], 300, "chat")):
        check_tokenizer(tokenizer, "the run x", "mend")


def test_the_special_tokens_follow_the_bytes_and_stand_for_no_text():
    plain = ByteTokenizer()
    assert (plain.vocab_size, BYTES.vocab_size) == (256, 264)
    assert BYTES.bos == plain.bos == BYTES.special["<|bos|>"]
    assert [BYTES.special[name] for name in CHAT_TOKENS] == list(range(256, 264))
    assert BYTES.token_bytes[255:].tolist() == [0] * 9
    assert BYTES.identity != plain.identity
    assert BYTES.decode([65, *range(255, 264), 66]) == "AB"
    bpe = train_bpe(["some text"], 300, "chat")
    assert bpe.vocab_size <= 300
    assert set(bpe.special) == {"<|bos|>", *CHAT_TOKENS}
    assert not bpe.token_bytes[list(bpe.special.values())].any()
