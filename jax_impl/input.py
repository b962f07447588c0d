"""Grain over twinstep's batches: deterministic, prefetched, resumed by number, sharded by process."""

from collections.abc import Iterator

import grain
import numpy as np

from twinstep.data import BatchSource


class NumberedBatches:
    """Random access for Grain: item n is this process's shard of global batch n."""

    def __init__(self, source: BatchSource, shard: int, shards: int, stop: int):
        self.source, self.shard, self.shards, self.stop = source, shard, shards, stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.source.batch(int(number), self.shard, self.shards)


def train_batches(
    source: BatchSource, start: int, stop: int, shard: int = 0, shards: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Batches start ... stop - 1 in order, prefetched by a thread. The position is the batch's number."""
    dataset = grain.MapDataset.source(NumberedBatches(source, shard, shards, stop))[start:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def eval_batches(source: BatchSource, limit: int, shard: int = 0, shards: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """`limit` validation batches, evenly spaced over the set, or all of them for 0."""
    count = min(limit or source.batches, source.batches)
    for number in (i * source.batches // count for i in range(count)):
        yield source.batch(number, shard, shards)
