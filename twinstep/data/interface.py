"""What `load_data` hands to both trainers."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from twinstep.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]


class BatchSource(Protocol):
    """Random access to batches by one global number, whatever the number of processes that share them."""

    @property
    def examples(self) -> int:
        """Rows of the data set: sequences or table rows."""

    @property
    def batches(self) -> int:
        """Batches of one epoch of training data, or of all the validation set."""

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """The part of global batch `number` that shard `shard` of `shards` works on.

        A pure function of the configuration and its arguments: the shards' rows, concatenated along the
        example axis, are the global batch to the byte. Training arrays have shape (A, B/A/shards, ...) with A
        micro-steps and B examples in a global batch; every `number` from 0 on exists, each epoch has a new order,
        and the remainder at its end is dropped. Validation arrays have shape (B/shards, ...), in the data's order;
        the last batch is padded with rows whose targets are -1.

        Raises UserError when `shards` does not divide the examples of a micro-step, IndexError for a number that
        does not exist.
        """


@dataclass(frozen=True)
class Data:
    """One data set, split into training and validation.

    `features` and `classes` are set for tables, `tokenizer` for text. `summary` describes in JSON values what was
    read: a run records it; `note` is one more line about it for the user.
    """

    train: BatchSource
    validation: BatchSource
    tokenizer: Tokenizer | None
    features: int | None
    classes: int | None
    summary: dict[str, Any]
    validation_text: Callable[[], Iterator[bytes]] | None = None
    note: str = ""

    def validation_gzip_bits_per_byte(self) -> float:
        """Size of the validation text, compressed by gzip at level 9, in bits per UTF-8 byte of the text.

        The baseline that any language model must beat. The documents are compressed one after another, without
        BOS tokens between them. Raises ValueError for a table.
        """
        if self.validation_text is None:
            raise ValueError("only text has a gzip baseline")
        packer = zlib.compressobj(level=9, wbits=31)  # 31: zlib's largest window in gzip's wrapper
        text_bytes = packed_bytes = 0
        for text in self.validation_text():
            text_bytes += len(text)
            packed_bytes += len(packer.compress(text))
        packed_bytes += len(packer.flush())
        return 8 * packed_bytes / text_bytes
