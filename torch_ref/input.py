"""torch's DataLoader over twinstep's batches: deterministic, prefetched, resumed by number, sharded by process."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from twinstep.data import BatchSource


class NumberedBatches(Dataset):
    """Random access for the DataLoader: item n is this process's shard of global batch n."""

    def __init__(self, source: BatchSource, shard: int, shards: int, stop: int):
        self.source, self.shard, self.shards, self.stop = source, shard, shards, stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return to_tensors(self.source.batch(number, self.shard, self.shards))


def train_batches(
    source: BatchSource, start: int, stop: int, shard: int = 0, shards: int = 1
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches start ... stop - 1 in order. The position is the batch's number."""
    dataset = NumberedBatches(source, shard, shards, stop)
    # An iterator draws a seed for its workers; drawn from torch's default generator, it would change dropout after a
    # resume.
    generator = torch.Generator()
    return iter(DataLoader(dataset, batch_size=None, sampler=range(start, stop), generator=generator))


def eval_batches(source: BatchSource, limit: int, shard: int = 0, shards: int = 1) -> Iterator[dict[str, torch.Tensor]]:
    """`limit` validation batches, evenly spaced over the set, or all of them for 0."""
    count = min(limit or source.batches, source.batches)
    for number in (i * source.batches // count for i in range(count)):
        yield to_tensors(source.batch(number, shard, shards))


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """NumPy arrays as tensors of the same bytes; class and token ids as int64, which torch's losses need."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {name: t.long() if t.dtype == torch.int32 else t for name, t in tensors.items()}
