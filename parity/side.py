"""The two sides of a check: what each can do, and what it reports, in NumPy and under torch's names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from twinstep.data import Data

Batch = dict[str, np.ndarray]
Named = dict[str, Any]  # name -> NumPy array, or a NumPy scalar


class TrainingState(NamedTuple):
    """All that a step changes.

    weights: parameters and buffers. moments: optimizer state as "kind/parameter" with the kinds momentum (Muon),
    first_moment and second_moment (AdamW), and "count/label", the steps that an optimizer group has taken; what a port
    keeps besides, under its own names. key: the port's random key, None where its seed decides.
    """

    weights: Named
    moments: Named
    step: int
    key: np.ndarray | None = None


@dataclass
class Captured:
    """Forward and backward passes of one step's micro-batches; names of micro-batch k > 0 end in " [k]"."""

    activations: Named = field(default_factory=dict)
    gradients: Named = field(default_factory=dict)  # of the mean loss, with respect to the activations


@dataclass
class Differentiated:
    """Of one step, what comes before the optimizers, named as in `Stepped`; empty where it was not computed."""

    loss: np.ndarray | None = None
    grad_norm: np.ndarray | None = None
    gradients: Named = field(default_factory=dict)
    captured: Captured = field(default_factory=Captured)


class Stepped(NamedTuple):
    """One training step from a given state, as the trainer takes it."""

    loss: np.ndarray  # nats per target, a scalar
    grad_norm: np.ndarray  # of all gradients together before clipping, a scalar
    learning_rate: float  # as the trainer logs it
    norms: Named  # as it logs them: "leaf_norm/parameter", "param_norm/label", "update_norm/label"
    gradients: Named  # of the mean loss, with respect to the parameters, before clipping
    after: TrainingState


class Optimized(NamedTuple):
    """What the optimizers make of given gradients."""

    clipped: Named  # the gradients after clipping, by parameter
    after: TrainingState


class Resumed(NamedTuple):
    """A checkpoint written and read: the state that a run goes on from, and every field as saved and as read."""

    state: TrainingState
    saved: Named
    restored: Named


class Side(Protocol):
    """One trainer under a check: `parity.torch_side.TorchSide` is the reference, `parity.jax_side.JaxSide` the port.

    Every method but `batches` and `schedule` starts from the state that it is given and keeps none: any step may be
    taken from any state, in any order. Parameters, gradients and moments have their parameter's shape and the
    configuration's parameter dtype. UserError is raised for weights that the model does not have, or lacks.
    """

    def initial_state(self, weights: Named) -> TrainingState:
        """The state of a run at step 0 from these parameters and buffers, float64, which are cast as a run casts them.

        Moments are zeros.
        """
        ...

    def batches(self, data: Data, start: int, stop: int) -> Iterator[Batch]:
        """The training batches `start` to `stop` - 1 as the step gets them, each array (A, B, ...)."""
        ...

    def schedule(self) -> Named:
        """The curves "group learning_rate", "group weight_decay" and, for Muon, "group momentum".

        Each is float64 (steps,), one value for every step of the run.
        """
        ...

    def train_step(self, state: TrainingState, batch: Batch) -> Stepped:
        """One step of the trainer's own function, dropout and all, with the gradients that its optimizer was given."""
        ...

    def optimize(self, state: TrainingState, gradients: Named) -> Optimized:
        """Clipping, the optimizers and nothing else: the step that these gradients (not yet clipped) make."""
        ...

    def evaluate(self, state: TrainingState, data: Data, limit: int) -> Named:
        """Sums and metrics over the first `limit` validation batches in eval mode, scalars by the trainer's names."""
        ...


def named_norms(parameters: Iterable[str], metrics: Named) -> Named:
    """The norms among a step's metrics, those of `leaf_norms` by parameter; see `Stepped`."""
    leaves = {f"leaf_norm/{name}": x for name, x in zip(parameters, metrics["leaf_norms"], strict=True)}
    return leaves | {name: x for name, x in metrics.items() if name.startswith(("param_norm/", "update_norm/"))}


def micro_name(name: str, micro_step: int) -> str:
    """The name of an activation in micro-batch `micro_step`."""
    return name if micro_step == 0 else f"{name} [{micro_step}]"
