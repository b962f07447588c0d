"""Text to token ids and back: UTF-8 bytes, or byte-level BPE trained on the corpus.

Both are lossless: the tokens of a text stand for exactly its UTF-8 bytes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import tokenizers
from numpy.typing import ArrayLike
from tokenizers import decoders, models, pre_tokenizers, trainers

from twinstep.errors import UserError

BOS = "<|bos|>"

# nanochat's special tokens beside the BOS token (nanochat/tokenizer.py): they frame the parts of a dialogue.
CHAT_TOKENS = (
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
Special = Literal["none", "chat"]
SPECIAL_TOKENS: dict[Special, tuple[str, ...]] = {"none": (BOS,), "chat": (BOS, *CHAT_TOKENS)}

# Byte-level BPE writes a byte as a printable character: itself where it is one in Latin-1, else the next one
# from U+0100 on (Radford et al. 2019, gpt-2/src/encoder.py).
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(OTHERS)}

# How GPT-4 cuts text into words before BPE joins bytes within them, with numbers of at most two digits as in
# nanochat (nanochat/tokenizer.py): less of a small vocabulary is spent on numbers.
WORDS = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",  # English contractions
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",  # letters, with one space or sign before them
        r"\p{N}{1,2}",
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # punctuation, with the line end after it
        r"\s*[\r\n]",
        r"\s+(?!\S)",  # white space, but for the last one, which goes with the next word
        r"\s+",
    )
)


class Tokenizer(Protocol):
    """`bos` is the id of the BOS token, which begins every document; `token_bytes` (V,) int32 holds how many UTF-8
    bytes each token stands for, 0 for special tokens, whose ids `special` holds by name; `identity` distinguishes
    tokenizers in the cache."""

    bos: int
    special: dict[str, int]
    vocab_size: int
    token_bytes: np.ndarray
    identity: str

    def encode(self, text: str) -> np.ndarray:
        """(T,) int32 ids, without the BOS token; text that looks like a special token is ordinary text."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, on all cores."""

    def to_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes that ids (T,) stand for; special tokens, and ids beyond the vocabulary, stand for none."""

    def decode(self, ids: ArrayLike) -> str:
        """`to_bytes` as text; bytes that are not UTF-8 become U+FFFD."""

    def save(self, path: Path) -> None:
        """Writes what `load_tokenizer` reads. A byte tokenizer has nothing to write."""


class ByteTokenizer:
    """One token per UTF-8 byte. The BOS token is 0xFF, which never occurs in valid UTF-8: 256 tokens in all.

    The special tokens of dialogues, where they are asked for, follow from 256 on.
    """

    bos = 0xFF

    def __init__(self, special_tokens: Special = "none") -> None:
        names = SPECIAL_TOKENS[special_tokens]
        self.special = {name: self.bos + at for at, name in enumerate(names)}
        self.vocab_size = self.bos + len(names)
        self.identity = "bytes" if special_tokens == "none" else f"bytes and {special_tokens}"
        self.token_bytes = np.ones(self.vocab_size, np.int32)
        self.token_bytes[self.bos :] = 0

    def encode(self, text: str) -> np.ndarray:
        """text -> ids (T,) int32."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text -> ids (T,) int32."""
        return [self.encode(text) for text in texts]

    def to_bytes(self, ids: ArrayLike) -> bytes:
        """ids (T,) -> the bytes they stand for; special tokens stand for none."""
        ids = _natural(ids)
        return ids[ids < self.bos].astype(np.uint8).tobytes()

    def decode(self, ids: ArrayLike) -> str:
        """ids (T,) -> text; bytes that are not UTF-8 become U+FFFD."""
        return self.to_bytes(ids).decode(errors="replace")

    def save(self, path: Path) -> None:
        """Writes nothing: there is nothing to keep."""


class BPETokenizer:
    """Byte-level BPE in the form of the `tokenizers` library's tokenizer.json.

    Takes the text of such a file. Raises ValueError if that is not a lossless byte-level BPE with our BOS token.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        try:
            self._bpe = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"not a tokenizer.json ({error})") from error
        self._bpe.encode_special_tokens = True  # "<|bos|>" in a text is not the BOS token
        self._bpe.no_truncation()
        self._bpe.no_padding()
        added = self._bpe.get_added_tokens_decoder()
        self.special = {token.content: id for id, token in added.items() if token.special}
        vocab = self._bpe.get_vocab(with_added_tokens=True)
        if BOS not in self.special:
            raise ValueError(f"it has no BOS token {BOS}")
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("its ids have gaps")
        self.vocab_size = len(vocab)
        self.bos = vocab[BOS]
        self._bytes = [b""] * len(vocab)
        try:
            for token, id in vocab.items():
                if token not in self.special:
                    self._bytes[id] = bytes(BYTE_OF[character] for character in token)
        except KeyError as error:
            raise ValueError("its tokens are not bytes") from error
        self.token_bytes = np.array([len(token) for token in self._bytes], np.int32)
        probe = "".join(map(chr, range(0x250))) + " \r\n  a 1234's e\u0301 \ufb01 \u4e16\U0001f600 "
        probe += " ".join((*SPECIAL_TOKENS["chat"], ""))
        if self.to_bytes(self.encode(probe)) != probe.encode():
            raise ValueError("it does not keep every byte of a text")

    def encode(self, text: str) -> np.ndarray:
        """text -> ids (T,) int32."""
        return np.array(self._bpe.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text -> ids (T,) int32."""
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def to_bytes(self, ids: ArrayLike) -> bytes:
        """ids (T,) -> the bytes they stand for; special tokens and ids beyond the vocabulary stand for none."""
        return b"".join(self._bytes[id] for id in _natural(ids).tolist() if id < self.vocab_size)

    def decode(self, ids: ArrayLike) -> str:
        """ids (T,) -> text; bytes that are not UTF-8 become U+FFFD."""
        return self.to_bytes(ids).decode(errors="replace")

    def exhausts(self, texts: Iterable[str]) -> bool:
        """Whether every word of the texts is one token, so that BPE trained on them could join no more."""
        words = self._bpe.pre_tokenizer.pre_tokenize_str
        return all(len(self.encode(text)) == len(words(text)) for text in texts)

    def save(self, path: Path) -> None:
        """Writes tokenizer.json completely or not at all."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(self.text, encoding="utf-8")
        temporary.replace(path)


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Special = "none") -> BPETokenizer:
    """BPE of `vocab_size` tokens, or fewer where the texts have no more pairs to join. Deterministic."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS[special_tokens]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return BPETokenizer(bpe.to_str())


def load_tokenizer(path: Path, mend: str | None = None) -> BPETokenizer:
    """Reads a tokenizer.json. Raises UserError if it is missing, damaged or not a byte-level BPE of ours.

    mend: what to do then, where the file is not a run's own.
    """
    try:
        return BPETokenizer(_without_bos(path.read_text(encoding="utf-8")))
    except OSError as error:
        mend = mend or "pass a run that has one"
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}; {mend}") from error
    except ValueError as error:  # also UnicodeDecodeError
        mend = mend or "restore the run's own file"
        raise UserError(f"cannot use the tokenizer {path}: {error}; {mend}") from error


def _without_bos(text: str) -> str:
    """A tokenizer.json whose post-processor puts the BOS token before each text, as an export's does, without that.

    `encode` never adds it: so the tokenizer keeps the identity that it had before it was exported.
    """
    try:
        bpe = tokenizers.Tokenizer.from_str(text)
        if bpe.encode("").ids != [bpe.token_to_id(BOS)]:
            return text
    except Exception:  # the library raises no narrower class; BPETokenizer says what is wrong
        return text
    bpe.post_processor = None
    return str(bpe.to_str())


def _natural(ids: ArrayLike) -> np.ndarray:
    ids = np.asarray(ids, np.int64)
    if (ids < 0).any():
        raise ValueError(f"{ids.min()} is not a token id")
    return ids
