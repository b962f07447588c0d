"""What both sides of a check report, in NumPy and under torch's names."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]
Named = dict[str, Any]  # name -> NumPy array, or a NumPy scalar


class TrainingState(NamedTuple):
    """All that a step changes.

    weights: parameters and buffers. moments: optimizer state as "kind/parameter" with the kinds momentum (Muon),
    first_moment and second_moment (AdamW), and "count/label", the steps that an optimizer group has taken.
    """

    weights: Named
    moments: Named
    step: int


@dataclass
class Captured:
    """Forward and backward passes of one step's micro-batches; names of micro-batch k > 0 end in " [k]"."""

    activations: Named = field(default_factory=dict)
    gradients: Named = field(default_factory=dict)  # of the mean loss, with respect to the activations


class Stepped(NamedTuple):
    """One whole training step from a given state."""

    loss: np.ndarray
    grad_norm: np.ndarray
    learning_rate: float
    gradients: Named  # of the mean loss, with respect to the parameters, before clipping
    after: TrainingState


class Optimized(NamedTuple):
    """What the optimizers make of given gradients."""

    clipped: Named
    after: TrainingState


def micro_name(name: str, micro_step: int) -> str:
    """The name of an activation in micro-batch `micro_step`."""
    return name if micro_step == 0 else f"{name} [{micro_step}]"
