"""Whole conversations packed into rows of T + 1 tokens, and batches of these rows by number.

A row holds conversations one after another, each beginning with its BOS token, and is filled up with BOS tokens that
are no targets. Which ones it holds is planned once: it takes, again and again, the longest of the next WINDOW
conversations that still fits; so almost nothing is padded, and no conversation is torn but one longer than a row,
which is cut. Source: karpathy/nanochat, scripts/chat_sft.py of 2026. As there and as in pretraining, a conversation
sees those before it in its row.

Shapes: A micro-steps, B rows of a global batch, T time.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass

import numpy as np

from twinstep.data.batches import micro_step_rows, row_numbers, training_rows, validation_rows
from twinstep.data.cache import TokenStream
from twinstep.data.interface import Batch

WINDOW = 100
PACKING = 4  # the purpose of the random stream, beside those of batches.py
READ_AT_ONCE = 2**20  # tokens


@dataclass(frozen=True)
class Plan:
    """Row r holds the conversations `conversations[starts[r] : starts[r + 1]]`, given by their numbers."""

    conversations: np.ndarray
    starts: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1


def pack(lengths: np.ndarray, capacity: int, seed: int | None) -> Plan:
    """The plan for conversations of these lengths, in an order drawn by `seed` or, without one, their own."""
    count = len(lengths)
    order = np.arange(count) if seed is None else np.random.default_rng([seed, PACKING]).permutation(count)
    sizes = np.minimum(lengths, capacity)[order].tolist()
    window = sorted((size, place) for place, size in enumerate(sizes[:WINDOW]))
    following = len(window)
    chosen: list[int] = []
    starts, room = [0], capacity
    while window:
        fitting = bisect_right(window, (room, count))
        if not fitting:
            starts.append(len(chosen))
            room = capacity
            continue
        size, place = window.pop(fitting - 1)
        chosen.append(place)
        room -= size
        if following < count:
            insort(window, (sizes[following], following))
            following += 1
    if chosen:
        starts.append(len(chosen))
    return Plan(order[np.array(chosen, np.int64)], np.array(starts, np.int64))


@dataclass(frozen=True)
class Conversations:
    """The conversations of one part of the data, on disk, and the rows that they are packed into.

    The stream holds a learned token as its id, another one as `~id`, which is negative. Conversation n is
    `stream[starts[n] : starts[n + 1]]`.
    """

    stream: TokenStream
    starts: np.ndarray
    bos: int
    sequence_len: int
    plan: Plan

    @property
    def cut(self) -> int:
        """How many conversations are longer than a row."""
        return int((np.diff(self.starts) > self.sequence_len + 1).sum())

    def read_rows(self, rows: np.ndarray) -> Batch:
        """tokens, targets (*rows.shape, T) int32; a row past the last is all padding."""
        stream, plan = np.asarray(self.stream.open()), self.plan
        packed = np.full((rows.size, self.sequence_len + 1), ~self.bos, np.int32)
        for row, number in zip(packed, rows.ravel().tolist(), strict=True):
            end = 0
            if number < plan.rows:
                for conversation in plan.conversations[plan.starts[number] : plan.starts[number + 1]].tolist():
                    ids = stream[self.starts[conversation] : self.starts[conversation + 1]][: len(row)]
                    row[end : end + len(ids)] = ids
                    end += len(ids)
        packed = packed.reshape(*rows.shape, -1)
        inputs, targets = packed[..., :-1], packed[..., 1:]
        return {"tokens": np.where(inputs < 0, ~inputs, inputs), "targets": np.maximum(targets, -1)}


def open_conversations(stream: TokenStream, bos: int, sequence_len: int, seed: int | None) -> Conversations:
    """A part's conversations, packed; each begins at a BOS token, which stands nowhere else."""
    found = []
    for start in range(0, stream.length, READ_AT_ONCE):
        found.append(start + np.flatnonzero(stream.open()[start : start + READ_AT_ONCE] == ~bos))
    starts = np.concatenate([*found, [stream.length]]).astype(np.int64)
    return Conversations(stream, starts, bos, sequence_len, pack(np.diff(starts), sequence_len + 1, seed))


@dataclass(frozen=True)
class TrainConversations:
    """Rows in a new order in each epoch; which conversations share a row stays."""

    conversations: Conversations
    batch_size: int
    accumulation: int
    seed: int

    @property
    def examples(self) -> int:
        """Rows."""
        return self.conversations.plan.rows

    @property
    def batches(self) -> int:
        """Batches of one epoch."""
        return self.examples // self.batch_size

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """tokens, targets (A, B/A/shards, T) int32."""
        rows = training_rows(number, self.examples, self.batch_size, self.seed)
        return self.conversations.read_rows(rows[micro_step_rows(self.batch_size, self.accumulation, shard, shards)])


@dataclass(frozen=True)
class ValidationConversations:
    """The held-out rows in order."""

    conversations: Conversations
    batch_size: int
    token_bytes: np.ndarray

    @property
    def examples(self) -> int:
        """Rows."""
        return self.conversations.plan.rows

    @property
    def batches(self) -> int:
        """Batches that cover every row, the last of them padded."""
        return -(-self.examples // self.batch_size)

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """tokens, targets, target_bytes (B/shards, T) int32; bytes are 0 where the target is -1 or a special token."""
        rows = row_numbers(number, self.batches, self.batch_size, validation_rows(self.batch_size, shard, shards))
        batch = self.conversations.read_rows(rows)
        targets = batch["targets"]
        batch["target_bytes"] = np.where(targets < 0, 0, self.token_bytes[targets]).astype(np.int32)
        return batch
