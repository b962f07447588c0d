"""What is trained on and what is held out.

20 files or more: every 20th file is validation. Fewer files, but 20 documents or more: every 20th document.
Fewer documents (one large text file, for instance): the last twentieth of every document, from the first line
that begins in it, or from its first character if no line does. Nothing held out is ever trained on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twinstep.data.documents import Chunk, count_documents, read_documents

EVERY = 20
RULE = "20 files, 20 documents, last twentieth"  # part of the cache's key: change it with the rule


class SplitChunk(NamedTuple):
    """Part of a document: its text, whether a document begins here, whether it is validation text."""

    text: str
    first: bool
    validation: bool


def read_split(paths: tuple[Path, ...], text_key: str) -> Iterator[SplitChunk]:
    """All documents in order, in chunks, each labelled as training or validation text."""
    if len(paths) >= EVERY:
        for index, path in enumerate(paths):
            for chunk in read_documents(path, text_key):
                yield SplitChunk(*chunk, index % EVERY == EVERY - 1)
    elif sum(count_documents(path, text_key, EVERY) for path in paths) >= EVERY:
        index = -1
        for path in paths:
            for chunk in read_documents(path, text_key):
                index += chunk.first
                yield SplitChunk(*chunk, index % EVERY == EVERY - 1)
    else:
        yield from _split_tails(paths, text_key)


def _split_tails(paths: tuple[Path, ...], text_key: str) -> Iterator[SplitChunk]:
    lengths: list[int] = []  # UTF-8 bytes of each document: where its last twentieth begins
    for chunk in _all_chunks(paths, text_key):
        if chunk.first:
            lengths.append(0)
        lengths[-1] += len(chunk.text.encode())

    document, position = -1, 0
    for chunk in _all_chunks(paths, text_key):
        if chunk.first:
            document, position = document + 1, 0
        cut = lengths[document] * (EVERY - 1) // EVERY
        raw = chunk.text.encode()
        start, position = position, position + len(raw)
        if position <= cut or start > cut:
            yield SplitChunk(chunk.text, chunk.first, start > cut)
            continue
        newline = raw.find(b"\n", cut - start, lengths[document] - 1 - start)
        at = newline + 1 or cut - start
        while 0 < at < len(raw) and raw[at] & 0xC0 == 0x80:  # inside a character
            at -= 1
        yield SplitChunk(raw[:at].decode(), chunk.first, False)
        yield SplitChunk(raw[at:].decode(), True, True)


def _all_chunks(paths: tuple[Path, ...], text_key: str) -> Iterator[Chunk]:
    for path in paths:
        yield from read_documents(path, text_key)
