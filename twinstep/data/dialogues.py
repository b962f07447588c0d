"""Dialogues, from lines of .jsonl to batches: `{"messages": [{"role": "user", "content": "..."}, ...]}`.

Every 20th conversation, counted over all files, is held out. They are tokenized once into a stream on disk, where `~id`
is a token that is not learned.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twinstep.config import Config, CorpusConfig
from twinstep.data.cache import ENCODE_AT_ONCE, TokenStream
from twinstep.data.chat import Span, check_tokenizer, encode_spans, render
from twinstep.data.corpus import identity, make_tokenizer, summarize, tokenize_once
from twinstep.data.documents import json_lines
from twinstep.data.files import CorpusFiles, find_corpus, kind_of
from twinstep.data.interface import Data
from twinstep.data.packing import Conversations, TrainConversations, ValidationConversations, open_conversations
from twinstep.data.split import EVERY
from twinstep.data.tokenizer import Tokenizer
from twinstep.errors import UserError

RULE = "20 conversations, nanochat's template"  # part of the cache's key: change it with the split or the template
KINDS = (".jsonl", ".jsonl.gz")


class Conversation(NamedTuple):
    """One line: its spans, and whether it is held out."""

    spans: list[Span]
    validation: bool


def load_dialogues(config: Config, corpus: CorpusConfig, tokenizer_path: Path | None) -> Data:
    """Dialogues as rows of packed conversations."""
    if corpus.data is None:
        raise UserError("--chat needs dialogues; pass --data with a .jsonl file or a folder of them")
    files = find_corpus(corpus.data)
    _check_kinds(files)
    tokenizer = make_tokenizer(corpus, files, tokenizer_path, lambda: _training_texts(files))
    mend = "pass --special-tokens chat for a new tokenizer, or begin with a model that has them"
    check_tokenizer(tokenizer, f"the tokenizer {tokenizer_path or corpus.tokenizer}", mend)
    parts = {"dialogues": identity(corpus, files), "rule": RULE, "tokenizer": tokenizer.identity}
    tokenized = tokenize_once(corpus, files, parts, lambda folder: _write_streams(folder, files, tokenizer))
    meta = tokenized.meta
    _check_meta(files, meta)
    seed, length = config.train.seed, corpus.sequence_len
    train = open_conversations(tokenized.train, tokenizer.bos, length, seed)
    held_out = open_conversations(tokenized.validation, tokenizer.bos, length, None)
    if train.plan.rows < config.batch_size:
        raise UserError(
            f"{files.source} has {meta['train']['conversations']} training conversations, which fill "
            f"{train.plan.rows} sequences; --batch-size {config.batch_size} needs more, lower it or --sequence-len"
        )
    training = TrainConversations(train, config.batch_size, config.train.accumulation, seed)
    validation = ValidationConversations(held_out, config.batch_size, tokenizer.token_bytes)
    for source in (training, validation):  # the first batch nearly always has some
        if not any((source.batch(number)["targets"] >= 0).any() for number in range(source.batches)):
            raise UserError(
                f"{files.source}: --sequence-len {length} cuts every conversation before the assistant speaks; raise it"
            )
    return Data(
        train=training,
        validation=validation,
        tokenizer=tokenizer,
        features=None,
        classes=None,
        summary=summarize(corpus, files, tokenizer, tokenized),
        validation_text=lambda: _learned_text(tokenized.validation, tokenizer),
        note=_packing_note(train, held_out),
    )


def read_conversations(files: CorpusFiles) -> Iterator[Conversation]:
    """All conversations in order. Raises UserError, naming file and line, for one that is not well formed."""
    index = 0
    for path in files.paths:
        try:
            for number, value in json_lines(path):
                yield Conversation(_render_line(path, number, value), index % EVERY == EVERY - 1)
                index += 1
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; mend it or pass other --data") from error


def _render_line(path: Path, number: int, value: Any) -> list[Span]:
    try:
        return render(value.get("messages") if isinstance(value, dict) else None)
    except ValueError as error:
        raise UserError(f"{path}:{number} has {error}; mend or delete the line") from error


def _check_kinds(files: CorpusFiles) -> None:
    for path in files.paths:
        if kind_of(path) not in KINDS:
            raise UserError(f"{path} holds no dialogues; --chat reads {' '.join(KINDS)} only, pass such --data")


def _training_texts(files: CorpusFiles) -> Iterator[str]:
    for conversation in read_conversations(files):
        if not conversation.validation:
            yield from (span.text for span in conversation.spans if not span.special)


def _write_streams(folder: Path, files: CorpusFiles, tokenizer: Tokenizer) -> dict[str, Any]:
    names = ("conversations", "tokens", "learned_tokens", "bytes")  # bytes of the learned text
    counts = {part: dict.fromkeys(names, 0) for part in ("train", "validation")}
    with (folder / "train.bin").open("wb") as train, (folder / "validation.bin").open("wb") as validation:

        def write(group: list[Conversation]) -> None:
            encoded = encode_spans([conversation.spans for conversation in group], tokenizer)
            for conversation, (ids, learned) in zip(group, encoded, strict=True):
                count = counts["validation" if conversation.validation else "train"]
                file = validation if conversation.validation else train
                file.write(np.where(learned, ids, ~ids).astype("<i4").tobytes())
                count["conversations"] += 1
                count["tokens"] += len(ids)
                count["learned_tokens"] += int(learned.sum())
                count["bytes"] += int(tokenizer.token_bytes[ids[learned]].sum())

        group: list[Conversation] = []
        size = 0
        for conversation in read_conversations(files):
            group.append(conversation)
            size += sum(len(span.text) + 1 for span in conversation.spans)
            if size >= ENCODE_AT_ONCE:
                write(group)
                group, size = [], 0
        write(group)
    return {"dtype": "<i4", **counts}


def _check_meta(files: CorpusFiles, meta: dict[str, Any]) -> None:
    count = meta["train"]["conversations"] + meta["validation"]["conversations"]
    if count < EVERY:
        raise UserError(
            f"{files.source} holds {count} conversations; {EVERY} or more are needed, since every {EVERY}th is held out"
        )


def _learned_text(stream: TokenStream, tokenizer: Tokenizer) -> Iterator[bytes]:
    for start in range(0, stream.length, 2**20):
        ids = stream.open()[start : start + 2**20]
        yield tokenizer.to_bytes(ids[ids >= 0])


def _packing_note(train: Conversations, validation: Conversations) -> str:
    packed = f"packed: {len(train.starts) - 1} conversations into {train.plan.rows} sequences"
    cut = train.cut + validation.cut
    return f"{packed}; {cut} are longer than --sequence-len and cut there" if cut else packed
