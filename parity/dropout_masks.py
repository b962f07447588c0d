"""Dropout by key: each framework draws by its own generator, so the port's masks are given to the reference.

They are drawn here once more, by Flax's own layer and by the rule for keys that `jax_impl.step` states: the run's key,
folded with the step and then with the micro-step. A port that draws by another key or rate parts from the reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.side import Batch
from twinstep.config import Config, MLPConfig
from twinstep.data import BatchSource, Data
from twinstep.errors import UserError

MASK = "dropout_mask"


def by_key(config: Config) -> bool:
    """Whether the port draws its own masks."""
    return isinstance(config.model, MLPConfig) and not config.model.shared_dropout and config.model.dropout > 0


def check_by_key(config: Config, devices: int) -> None:
    """Raises UserError where the keys would depend on the devices."""
    if by_key(config) and (devices > 1 or config.devices.parallel not in ("auto", "jit")):
        raise UserError(
            "without --shared-dropout each device draws masks of its own; pass it, or neither --devices nor --parallel"
        )


def with_masks(data: Data, config: Config) -> Data:
    """The data with the port's masks in the training batches, if it draws them by key."""
    return replace(data, train=MaskedBatches(data.train, config)) if by_key(config) else data


def without_masks(batch: Mapping[str, np.ndarray], config: Config) -> Batch:
    """What the port is given of a batch of the reference's."""
    return {name: array for name, array in batch.items() if name != MASK or not by_key(config)}


@dataclass(frozen=True)
class MaskedBatches:
    """A `BatchSource` whose batches have masks, drawn by key."""

    source: BatchSource
    config: Config

    @property
    def examples(self) -> int:
        """As the source's."""
        return self.source.examples

    @property
    def batches(self) -> int:
        """As the source's."""
        return self.source.batches

    def batch(self, number: int, shard: int = 0, shards: int = 1) -> Batch:
        """The source's batch, and dropout_mask (A, B, hidden) bool, True where a unit is kept."""
        batch = self.source.batch(number, shard, shards)
        return {**batch, MASK: draw_masks(self.config, number, *batch["targets"].shape)}


def draw_masks(config: Config, step: int, micro_steps: int, examples: int) -> np.ndarray:
    """(A, B, D) bool, True where a unit is kept."""
    assert isinstance(config.model, MLPConfig)
    dropout = nnx.Dropout(config.model.dropout)
    ones_BD = jnp.ones((examples, config.model.hidden), config.train.dtype)
    key = jax.random.fold_in(jax.random.key(config.train.seed), step)
    keys = (jax.random.fold_in(key, number) for number in range(micro_steps))
    return np.stack([np.asarray(dropout(ones_BD, rngs=micro_key) != 0) for micro_key in keys])
