"""Text, from files to batches of tokens."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from twinstep.config import Config, CorpusConfig
from twinstep.data.batches import TrainTokens, ValidationTokens
from twinstep.data.cache import (
    TokenizedCorpus,
    TokenStream,
    cache_folder,
    entry_key,
    read_entry,
    temporary_folder,
    write_entry,
    write_streams,
)
from twinstep.data.files import CorpusFiles, find_corpus, kind_of
from twinstep.data.interface import Data
from twinstep.data.split import RULE, read_split
from twinstep.data.tokenizer import BOS, SPECIAL_TOKENS, WORDS, ByteTokenizer, Tokenizer, load_tokenizer, train_bpe
from twinstep.errors import UserError

# How much training text BPE is trained on: bytes of text, and bytes of distinct words. The library holds some
# 160 bytes per byte of a distinct word, so that languages written without spaces would take gigabytes.
BPE_SAMPLE = 64 * 2**20
BPE_DISTINCT = 2 * 2**20
WORD = re.compile(r" ?\w+|[^\w\s]+")  # a word, roughly: this only estimates memory
LONG = re.compile(r"(\S{512}|\s{512})")  # left out: the library's time grows with the square of a word's length


def load_corpus(config: Config, corpus: CorpusConfig, tokenizer_path: Path | None) -> Data:
    """The corpus as one stream of documents, each after the tokenizer's BOS token."""
    files = find_corpus(corpus.data)
    tokenizer = make_tokenizer(corpus, files, tokenizer_path, lambda: _training_texts(corpus, files))
    tokenized = tokenize_once(
        corpus,
        files,
        {"corpus": identity(corpus, files), "tokenizer": tokenizer.identity},
        lambda folder: write_streams(folder, read_split(files.paths, corpus.text_key), tokenizer),
    )
    _check_size(config, corpus, files, tokenized)
    return Data(
        train=TrainTokens(
            tokenized.train,
            corpus.sequence_len,
            config.batch_size,
            config.train.accumulation,
            config.train.seed,
            corpus.masked_targets,
        ),
        validation=ValidationTokens(
            tokenized.validation,
            corpus.sequence_len,
            config.batch_size,
            config.train.seed,
            corpus.masked_targets,
            tokenizer.token_bytes,
        ),
        tokenizer=tokenizer,
        features=None,
        classes=None,
        summary=summarize(corpus, files, tokenizer, tokenized),
        validation_text=lambda: _text(tokenized.validation, tokenizer),
    )


def summarize(
    corpus: CorpusConfig, files: CorpusFiles, tokenizer: Tokenizer, tokenized: TokenizedCorpus
) -> dict[str, Any]:
    """What was read, as a run records it, of text and of dialogues (which have no --text-key)."""
    return {
        "source": files.source,
        "files": len(files.paths),
        "bytes": files.bytes,
        "sha256": files.sha256,
        **({"text_key": corpus.text_key} if corpus.text_key != "text" and not corpus.chat else {}),
        "tokenizer": "bytes" if corpus.tokenizer == "bytes" else "bpe",
        "vocab_size": tokenizer.vocab_size,
        **({"tokenizer_sha256": tokenizer.identity} if corpus.tokenizer != "bytes" else {}),
        "train": tokenized.meta["train"],
        "validation": tokenized.meta["validation"],
    }


def make_tokenizer(
    corpus: CorpusConfig, files: CorpusFiles, path: Path | None, texts: Callable[[], Iterable[str]]
) -> Tokenizer:
    """Bytes, the BPE at `path`, or one that is trained on the training texts, unless the cache has it."""
    if corpus.tokenizer == "bytes":
        if path is not None:
            raise UserError(f"--tokenizer is bytes, but there is a BPE tokenizer {path}; pass --tokenizer bpe")
        return ByteTokenizer(corpus.special_tokens)
    if corpus.tokenizer_file is not None:
        return load_tokenizer(path) if path is not None else _given_tokenizer(corpus.tokenizer_file)
    wanted = corpus.bpe_vocab_size
    if path is not None:
        given = load_tokenizer(path)
        # A small corpus may have too few pairs to join for the vocabulary that was asked for.
        smaller = given.vocab_size < wanted and given.exhausts(_bpe_sample(texts()))
        if given.vocab_size != wanted and not smaller:
            raise UserError(
                f"the tokenizer {path} has {given.vocab_size} tokens, --bpe-vocab-size is {wanted}; "
                f"pass --bpe-vocab-size {given.vocab_size} or the run that the tokenizer belongs to"
            )
        return given
    training = [wanted, BPE_SAMPLE, BPE_DISTINCT, LONG.pattern, WORDS]
    training += SPECIAL_TOKENS[corpus.special_tokens][1:]
    key = entry_key(corpus=identity(corpus, files), bpe=training, **({"chat": True} if corpus.chat else {}))
    cached = cache_folder(corpus.cache_dir) / f"{key}.json"
    try:
        return load_tokenizer(cached)
    except UserError:  # missing or damaged
        trained = train_bpe(_bpe_sample(texts()), wanted, corpus.special_tokens)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            trained.save(cached)
        except OSError:
            pass  # it is kept in the run; training it again costs seconds
        return trained


def _given_tokenizer(path: Path) -> Tokenizer:
    given = load_tokenizer(path, f"pass the tokenizer.json of a run, or another byte-level BPE with {BOS}")
    if given.vocab_size - len(given.special) < 256:  # bytes, as an export to Hugging Face writes them
        raise UserError(f"the tokenizer {path} has {given.vocab_size} tokens, all bytes; pass --tokenizer bytes")
    return given


def tokenize_once(
    corpus: CorpusConfig, files: CorpusFiles, parts: dict[str, Any], write: Callable[[Path], dict[str, Any]]
) -> TokenizedCorpus:
    """The cache's entry of these parts, which `write` writes into a folder if it is not there yet."""
    name = entry_key(**parts)
    folder = cache_folder(corpus.cache_dir) / name
    entry = read_entry(folder)

    def write_unchanged(folder: Path) -> dict[str, Any]:
        meta = write(folder)
        files.check_unchanged()  # before the entry is renamed: its key is the hash of the files as they were at first
        return meta

    if entry is None:
        if sys.stderr.isatty():  # gigabytes take minutes
            print(f"tokenizing {files.source} once ({files.bytes / 1e6:.0f} MB)", file=sys.stderr)
        try:
            entry = write_entry(folder, write_unchanged)
        except OSError:  # a read-only or full disk
            fallback = temporary_folder()
            try:
                entry = write_entry(fallback / name, write_unchanged)
            except OSError as error:
                raise UserError(
                    f"cannot write the tokenized corpus, neither to {folder} nor to {fallback}: "
                    f"{error.strerror}; pass --cache-dir with room for it"
                ) from error
    return entry


def identity(corpus: CorpusConfig, files: CorpusFiles) -> list[object]:
    """What tells a corpus from others, in the keys of the cache."""
    # The kinds and sizes say where in the hashed bytes each file begins and how it is read.
    kinds = [kind_of(path) for path in files.paths]
    return [RULE, files.sha256, kinds, list(files.sizes), corpus.text_key]


def _training_texts(corpus: CorpusConfig, files: CorpusFiles) -> Iterator[str]:
    return (chunk.text for chunk in read_split(files.paths, corpus.text_key) if not chunk.validation)


def _bpe_sample(texts: Iterable[str]) -> Iterator[str]:
    """The first part of the training text, as much as BPE is trained on."""
    size = distinct = 0
    words: set[str] = set()
    for text in texts:
        new = set(WORD.findall(text)) - words
        words |= new
        distinct += len("".join(new).encode())
        size += len(text.encode())
        yield from filter(None, LONG.split(text))
        if size >= BPE_SAMPLE or distinct >= BPE_DISTINCT:
            return


def _check_size(config: Config, corpus: CorpusConfig, files: CorpusFiles, tokenized: TokenizedCorpus) -> None:
    train, validation = tokenized.meta["train"], tokenized.meta["validation"]
    if train["bytes"] + validation["bytes"] == 0:
        raise UserError(f"{files.source} holds no text; pass --data with some")
    needed = config.batch_size * corpus.sequence_len + 1
    if train["tokens"] < needed:
        raise UserError(
            f"{files.source} has {train['tokens']} training tokens, one batch needs {needed}; "
            "lower --batch-size or --sequence-len, or pass more --data"
        )
    if validation["bytes"] == 0:
        raise UserError(
            f"{files.source} has no validation text: every 20th file or document is empty; pass other --data"
        )


def _text(stream: TokenStream, tokenizer: Tokenizer) -> Iterator[bytes]:
    for start in range(0, stream.length, 2**20):
        yield tokenizer.to_bytes(stream.open()[start : start + 2**20])
