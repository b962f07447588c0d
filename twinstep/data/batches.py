"""Batches by number: the four sources that `load_data` chooses from.

Shapes: A micro-steps, B examples of a global batch, T time, F features. Everything random is drawn for the
global batch by NumPy's PCG64, keyed by the seed, the batch or epoch, and its purpose; each shard takes its rows.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from twinstep.config import check_shards
from twinstep.data.cache import TokenStream
from twinstep.data.interface import Batch

# The purpose of a random stream: the last part of its key.
ORDER, TRAIN_MASK, VALIDATION_MASK, DROPOUT = range(4)


@dataclass(frozen=True)
class TrainTokens:
    """Sequences of T tokens: row i holds stream[i*T : i*T+T], its targets stream[i*T+1 : i*T+T+1]."""

    stream: TokenStream
    sequence_len: int
    batch_size: int
    accumulation: int
    seed: int
    masked_targets: float

    @property
    def examples(self) -> int:
        """Full sequences in the stream; the remainder at its end is not trained on."""
        return max(self.stream.length - 1, 0) // self.sequence_len

    @property
    def batches(self) -> int:
        """Batches of one epoch."""
        return self.examples // self.batch_size

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """tokens, targets (A, B/A/shards, T) int32."""
        rows = training_rows(number, self.examples, self.batch_size, self.seed)
        mine = micro_step_rows(self.batch_size, self.accumulation, shard, shards)
        batch = cut_rows(self.stream, rows[mine], self.sequence_len)
        if self.masked_targets:
            drawn = np.random.default_rng([self.seed, number, TRAIN_MASK]).random(
                (self.batch_size, self.sequence_len), np.float32
            )
            batch["targets"][drawn[mine] < self.masked_targets] = -1
        return batch


@dataclass(frozen=True)
class ValidationTokens:
    """The validation stream in order.

    The last sequence is padded with ignored targets, so that every token but the stream's first BOS token is a
    target once.
    """

    stream: TokenStream
    sequence_len: int
    batch_size: int
    seed: int
    masked_targets: float
    token_bytes: np.ndarray

    @property
    def examples(self) -> int:
        """Sequences, the last of them padded."""
        return -(-(self.stream.length - 1) // self.sequence_len)

    @property
    def batches(self) -> int:
        """Batches that cover every sequence, the last of them padded."""
        return -(-self.examples // self.batch_size)

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """tokens, targets, target_bytes (B/shards, T) int32; bytes are 0 where the target is -1 or the BOS token."""
        mine = validation_rows(self.batch_size, shard, shards)
        batch = cut_rows(self.stream, row_numbers(number, self.batches, self.batch_size, mine), self.sequence_len)
        targets = batch["targets"]
        if self.masked_targets:
            drawn = np.random.default_rng([self.seed, number, VALIDATION_MASK]).random(
                (self.batch_size, self.sequence_len), np.float32
            )
            targets[drawn[mine] < self.masked_targets] = -1
        batch["target_bytes"] = np.where(targets < 0, 0, self.token_bytes[targets]).astype(np.int32)
        return batch


@dataclass(frozen=True)
class TrainTable:
    """Rows of a table, in a new order in each epoch; with `hidden`, dropout masks too."""

    inputs: np.ndarray
    targets: np.ndarray
    batch_size: int
    accumulation: int
    seed: int
    hidden: int | None
    dropout: float

    @property
    def examples(self) -> int:
        """Rows."""
        return len(self.targets)

    @property
    def batches(self) -> int:
        """Batches of one epoch."""
        return self.examples // self.batch_size

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """inputs (A, B/A/shards, F) float32, targets (A, B/A/shards) int32.

        With shared dropout also dropout_mask (A, B/A/shards, hidden) bool, True where a unit is kept.
        """
        rows = training_rows(number, self.examples, self.batch_size, self.seed)
        mine = micro_step_rows(self.batch_size, self.accumulation, shard, shards)
        batch = {"inputs": self.inputs[rows[mine]], "targets": self.targets[rows[mine]]}
        if self.hidden is not None:
            layer = 0  # the only one with dropout
            drawn = np.random.default_rng([self.seed, number, layer, DROPOUT]).random(
                (self.batch_size, self.hidden), np.float32
            )
            batch["dropout_mask"] = drawn[mine] >= np.float32(self.dropout)
        return batch


@dataclass(frozen=True)
class ValidationTable:
    """The held-out rows in order."""

    inputs: np.ndarray
    targets: np.ndarray
    batch_size: int

    @property
    def examples(self) -> int:
        """Rows."""
        return len(self.targets)

    @property
    def batches(self) -> int:
        """Batches that cover every row, the last of them padded."""
        return -(-self.examples // self.batch_size)

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """inputs (B/shards, F) float32, targets (B/shards,) int32; past the end inputs 0 and targets -1."""
        rows = row_numbers(number, self.batches, self.batch_size, validation_rows(self.batch_size, shard, shards))
        real = rows < self.examples
        inputs = np.zeros((len(rows), self.inputs.shape[1]), np.float32)
        targets = np.full(len(rows), -1, np.int32)
        inputs[real] = self.inputs[rows[real]]
        targets[real] = self.targets[rows[real]]
        return {"inputs": inputs, "targets": targets}


def training_rows(number: int, examples: int, batch_size: int, seed: int) -> np.ndarray:
    """The rows (B,) of global batch `number`."""
    if number < 0:
        raise IndexError(f"there is no batch {number}")
    epoch, index = divmod(number, examples // batch_size)
    return epoch_order(seed, epoch, examples)[index * batch_size : (index + 1) * batch_size]


@lru_cache(maxsize=2)  # two: batches are prefetched across an epoch's end
def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """A permutation of the examples' numbers, (examples,) int64, read-only; another in every epoch."""
    order = np.random.default_rng([seed, epoch, ORDER]).permutation(examples)
    order.flags.writeable = False
    return order


def micro_step_rows(batch_size: int, accumulation: int, shard: int, shards: int) -> np.ndarray:
    """Which rows of a global batch a shard works on, (A, B/A/shards)."""
    check_shards(batch_size, accumulation, shards)
    rows = np.arange(batch_size).reshape(accumulation, shards, batch_size // accumulation // shards)
    return rows[:, shard]


def validation_rows(batch_size: int, shard: int, shards: int) -> np.ndarray:
    """Which rows of a global batch a shard works on, (B/shards,)."""
    return micro_step_rows(batch_size, 1, shard, shards)[0]


def row_numbers(number: int, batches: int, batch_size: int, mine: np.ndarray) -> np.ndarray:
    """The examples of batch `number` that a shard works on, (B/shards,). Raises IndexError past the last batch."""
    if not 0 <= number < batches:
        raise IndexError(f"there is no batch {number} of {batches}")
    return number * batch_size + mine


def cut_rows(stream: TokenStream, rows: np.ndarray, sequence_len: int) -> Batch:
    """tokens, targets (*rows.shape, T) int32; past the stream's end tokens 0 and targets -1."""
    places = rows[..., None] * sequence_len + np.arange(sequence_len + 1)
    real = places < stream.length
    ids = stream.open()[np.where(real, places, 0)].astype(np.int32)
    scored = real[..., 1:]
    return {"tokens": np.where(scored, ids[..., :-1], 0), "targets": np.where(scored, ids[..., 1:], -1)}
