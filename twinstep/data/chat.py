"""Dialogues as tokens, in nanochat's template, and which of the tokens are learned.

    <|bos|>
    <|user_start|>TEXT<|user_end|>
    <|assistant_start|>TEXT<|assistant_end|>
    ...

The loss counts what the assistant says, <|assistant_end|> included: what follows <|assistant_start|>, which is given.
An assistant's content may be a list of parts: text; python, between <|python_start|> and <|python_end|>, learned too;
python_output, between <|output_start|> and <|output_end|>, not learned, since Python writes it. A system message goes
before the first user's, with an empty line between. Source: karpathy/nanochat, nanochat/tokenizer.py,
render_conversation; unlike there, a conversation without an assistant, and an empty text, are errors.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from twinstep.data.tokenizer import BOS, CHAT_TOKENS, Tokenizer
from twinstep.errors import UserError

USER_START, USER_END, ASSISTANT_START, ASSISTANT_END, PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = CHAT_TOKENS
ROLES = ("user", "assistant", "system")
# The special tokens around a part of an assistant's content, and whether it is learned.
PARTS: dict[str, tuple[str, str, bool]] = {
    "text": ("", "", True),
    "python": (PYTHON_START, PYTHON_END, True),
    "python_output": (OUTPUT_START, OUTPUT_END, False),
}


class Span(NamedTuple):
    """Text, or the name of a special token; `learned`: whether its tokens are targets."""

    text: str
    special: bool = False
    learned: bool = False


class Rendered(NamedTuple):
    """A conversation's ids (T,) int32, and which of them are learned (T,) bool."""

    ids: np.ndarray
    learned: np.ndarray


def render(messages: Any) -> list[Span]:
    """A conversation as spans. Raises ValueError saying what is wrong with it."""
    if not isinstance(messages, list) or not messages:
        raise ValueError('no list of messages under "messages"')
    for number, message in enumerate(messages):
        _check_message(message, number)
    messages = _merge_system(messages)
    spans = [Span(BOS, special=True)]
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise ValueError(f"a message of the {message['role']} where one of the {expected} belongs")
        spans += user_turn(message["content"]) if expected == "user" else _assistant_turn(message["content"])
    if not any(span.learned and not span.special for span in spans):
        raise ValueError("nothing that the assistant says, so nothing to learn")
    return spans


def user_turn(text: str) -> list[Span]:
    """What a user says."""
    return [Span(USER_START, special=True), Span(text), Span(USER_END, special=True)]


def encode_spans(conversations: Sequence[Sequence[Span]], tokenizer: Tokenizer) -> list[Rendered]:
    """Each conversation's ids and mask. A special token's name within a text stays text."""
    texts = iter(tokenizer.encode_many([s.text for spans in conversations for s in spans if not s.special]))
    rendered = []
    for spans in conversations:
        ids = [np.array([tokenizer.special[s.text]], np.int32) if s.special else next(texts) for s in spans]
        learned = np.repeat([s.learned for s in spans], [len(some) for some in ids])
        rendered.append(Rendered(np.concatenate(ids), learned))
    return rendered


def check_tokenizer(tokenizer: Tokenizer, holder: str, mend: str) -> None:
    """Raises UserError if the tokenizer lacks a token of the template."""
    missing = [name for name in CHAT_TOKENS if name not in tokenizer.special]
    if missing:
        raise UserError(f"--chat needs the special token {missing[0]}, which {holder} does not have; {mend}")


def _check_message(message: Any, number: int) -> None:
    where = f"message {number + 1}"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else None
        raise ValueError(f"{where} of the role {role!r}; known are {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list) and content and message["role"] == "assistant":
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in PARTS:
                kind = part.get("type") if isinstance(part, dict) else None
                raise ValueError(f"{where} with a part of the type {kind!r}; known are {', '.join(PARTS)}")
            # What a program prints may be nothing.
            _check_text(part.get("text"), f"a part of {where}", part["type"] == "python_output")
    else:
        _check_text(content, where, False)


def _check_text(text: Any, where: str, may_be_empty: bool) -> None:
    if not isinstance(text, str):
        raise ValueError(f"no string as the content of {where}")
    if not text and not may_be_empty:
        raise ValueError(f"an empty string as the content of {where}")
    try:
        text.encode()
    except UnicodeEncodeError:  # "\ud800" is good JSON
        raise ValueError(f"half a surrogate pair in {where}") from None


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if messages[0]["role"] != "system" or len(messages) == 1:
        return messages
    system, first, *rest = messages
    if first["role"] != "user":
        raise ValueError(f"a message of the {first['role']} after the system's, where one of the user belongs")
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _assistant_turn(content: str | list[dict[str, str]]) -> list[Span]:
    spans = [Span(ASSISTANT_START, special=True)]
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        start, end, learned = PARTS[part["type"]]
        inner = Span(part["text"], learned=learned)
        if start:
            spans += [Span(start, special=True, learned=learned), inner, Span(end, special=True, learned=learned)]
        else:
            spans.append(inner)
    return [*spans, Span(ASSISTANT_END, special=True, learned=True)]
