"""What the models are trained on: text for the language models, tables for the classifiers."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from twinstep.config.bounds import BELOW_ONE, COUNT, Bound, check_bounds, check_text
from twinstep.errors import UserError

LEAST_CHAT_VOCABULARY = 265  # 256 bytes, the BOS token and the eight special tokens of dialogues


@dataclass(frozen=True)
class CorpusConfig:
    """Text for the language models."""

    data: str | None = None
    """File or folder of .txt .md .py .jsonl .jsonl.gz .parquet; the Python standard library's source when left out."""
    text_key: str = "text"
    """Key of a .jsonl line, or column of a .parquet file, that holds the text of a document."""
    sequence_len: int = 256
    """Length of a training sequence in tokens."""
    tokenizer: str = "bytes"
    """bytes: one token per byte; bpe: BPE of bytes, trained on the training files; or a tokenizer.json with <|bos|>."""
    bpe_vocab_size: int = 4096
    """Tokens that bpe is trained to, the 256 bytes and the special tokens included."""
    special_tokens: Literal["none", "chat"] = "none"
    """chat: bytes, or a BPE that is trained, get the eight special tokens of dialogues too; none: no more than BOS."""
    chat: bool = False
    """Dialogues: --data is .jsonl whose lines hold "messages"; the loss is on the assistant's tokens only."""
    masked_targets: float = 0.0
    """Share of targets set to -1 (ignored), drawn by seed and batch number; for parity and tests."""
    cache_dir: str | None = None
    """Folder for tokenized corpora; $XDG_CACHE_HOME/twinstep or ~/.cache/twinstep when left out."""

    BOUNDS: ClassVar[dict[str, Bound]] = {
        "sequence_len": COUNT,
        "bpe_vocab_size": Bound(257, 2**24),
        "masked_targets": BELOW_ONE,
    }

    def __post_init__(self) -> None:
        check_bounds(self)
        check_text("text_key", self.text_key)
        if not self.text_key:
            raise UserError("--text-key is empty; pass the key or column that holds the text")
        if self.tokenizer not in ("bytes", "bpe") and Path(self.tokenizer).suffix != ".json":
            raise UserError(f"--tokenizer is {self.tokenizer!r}; choose bytes, bpe or the path of a tokenizer.json")
        if self.tokenizer == "bpe" and self.special_tokens == "chat" and self.bpe_vocab_size < LEAST_CHAT_VOCABULARY:
            raise UserError(
                f"--bpe-vocab-size is {self.bpe_vocab_size}; with --special-tokens chat it must be at least "
                f"{LEAST_CHAT_VOCABULARY}"
            )
        if self.chat and self.masked_targets:
            raise UserError("--chat decides which targets count; leave --masked-targets out")

    @property
    def tokenizer_file(self) -> Path | None:
        """The tokenizer.json that a new run begins with, if one is given."""
        return None if self.tokenizer in ("bytes", "bpe") else Path(self.tokenizer)


@dataclass(frozen=True)
class TabularConfig:
    """scikit-learn's small data sets for the classifiers."""

    dataset: Literal["digits", "breast_cancer"] = "digits"
    """digits: 1,797 images of 8 x 8, 10 classes; breast_cancer: 569 samples of 30 features, 2 classes."""

    BOUNDS: ClassVar[dict[str, Bound]] = {}


DataConfig = CorpusConfig | TabularConfig
