"""What the models are trained on: text for the language models, tables for the classifiers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from twinstep.config.bounds import BELOW_ONE, COUNT, Bound, check_bounds


@dataclass(frozen=True)
class CorpusConfig:
    """Text for the language models."""

    data: str | None = None
    """File or folder of .txt .md .py .jsonl .parquet; the Python standard library's own source when left out."""
    sequence_len: int = 256
    """Length of a training sequence in tokens."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """bytes: one token per UTF-8 byte; bpe: byte-level BPE trained on the training files and kept in the run."""
    bpe_vocab_size: int = 4096
    """Tokens of the BPE vocabulary, the 256 bytes and the BOS token included."""
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


@dataclass(frozen=True)
class TabularConfig:
    """scikit-learn's small data sets for the classifiers."""

    dataset: Literal["digits", "breast_cancer"] = "digits"
    """digits: 1,797 images of 8 x 8, 10 classes; breast_cancer: 569 samples of 30 features, 2 classes."""

    BOUNDS: ClassVar[dict[str, Bound]] = {}


DataConfig = CorpusConfig | TabularConfig
