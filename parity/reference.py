"""All that the PyTorch side does in one run, and the truth beside it. One reference serves any number of ports."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from parity.budget import EPS
from parity.envelope import PERTURBATIONS, moved_by, watched_steps
from parity.platforms import torch_device, with_orthogonalization
from parity.request import Platform
from parity.serial import SerialProducts
from parity.side import Batch, Captured, Differentiated, Named, Optimized, Side, Stepped, TrainingState
from parity.torch_side import TorchSide
from torch_ref.models import weight_shapes
from twinstep.config import Config
from twinstep.data import Data
from twinstep.init import initial_weights


@dataclass
class Run:
    """A run of either side: losses of every step, and weights after the watched steps."""

    losses: list[float] = field(default_factory=list)
    weights: dict[int, Named] = field(default_factory=dict)

    def add(self, stepped: Stepped, watched: Sequence[int]) -> None:
        """Enter the next step, with its weights if it is watched."""
        step = len(self.losses)
        self.losses.append(float(stepped.loss))
        if step in watched:
            self.weights[step] = stepped.after.weights

    def train(
        self, side: Side, state: TrainingState, batches: Iterable[Batch], watched: Sequence[int]
    ) -> TrainingState:
        """Take and enter a step on each of the batches, from `state` on; returns the state after the last."""
        for batch in batches:
            stepped = side.train_step(state, batch)
            self.add(stepped, watched)
            state = stepped.after
        return state


class Watched(NamedTuple):
    """The reference at one step.

    The truth is the same objects in float64: the reference itself in a float64 check. serial: the same with serial
    products, in a float32 check. That and `moved` are of the first seed alone.
    """

    before: TrainingState
    batch: Batch
    stepped: Stepped
    captured: Captured
    optimized: Optimized
    true_stepped: Stepped
    true_captured: Captured
    true_optimized: Optimized
    serial: Differentiated
    moved: list[tuple[np.ndarray, Named]]  # loss and new weights of the step from perturbed parameters


class Reference(NamedTuple):
    """One run of the reference from one initialization."""

    weights: Named  # the common start, float64
    start: TrainingState
    batches: list[Batch]
    schedule: Named
    watched: dict[int, Watched]
    labels: dict[str, str]  # parameter -> optimizer group
    run: Run
    moved_runs: list[Run]  # from parameters perturbed by one ulp; empty where no trajectory is compared
    end: TrainingState
    evaluation: Named
    true_evaluation: Named


def make_reference(
    config: Config,
    data: Data,
    init: str,
    first: bool = True,
    weights: Named | None = None,
    platform: Platform = "cpu",
) -> Reference:
    """Run torch_ref as `config` says, from `weights` or the initialization `init`, on its own batches.

    first: of several seeds; it alone has a trajectory and serial products. platform: the port's; torch runs on the
    device beside it.
    """
    steps, dtype = config.train.steps, config.train.dtype
    device = torch_device(platform)
    side = true_side = TorchSide(with_orthogonalization(platform, config), device)
    if dtype != "float64":
        true_side = TorchSide(replace(config, train=replace(config.train, dtype="float64")), device)
    if weights is None:
        weights = initial_weights(weight_shapes(side.model), config.train.seed, init)  # type: ignore[arg-type]
    start = side.initial_state(weights)
    batches = list(side.batches(data, 0, steps))
    names = list(side.labels)
    perturbations = range(PERTURBATIONS if first else 0)

    run, watched = Run(), {}
    state = start
    for step, batch in enumerate(batches):
        if step in watched_steps(steps):
            watched[step] = watch(side, true_side, state, batch)
            if first and dtype == "float32":  # in bfloat16 a product is rounded by far more than its sum is off
                with SerialProducts():
                    watched[step] = watched[step]._replace(serial=side.differentiate(state, batch))
            for seed in perturbations:
                one = side.train_step(perturb(state, EPS[dtype], seed, names), batch)
                watched[step].moved.append((one.loss, one.after.weights))
            stepped = watched[step].stepped
        else:
            stepped = side.train_step(state, batch)
        run.add(stepped, watched_steps(steps))
        state = stepped.after
    moved_runs = [Run() for _ in perturbations]
    for seed, moved_run in enumerate(moved_runs):
        moved_run.train(side, perturb(start, EPS[dtype], seed, names), batches, list(watched))
    evaluation = side.evaluate(state, data, config.train.eval_batches)
    true_evaluation = evaluation if true_side is side else true_side.evaluate(state, data, config.train.eval_batches)
    return Reference(
        weights,
        start,
        batches,
        side.schedule(),
        watched,
        side.labels,
        run,
        moved_runs,
        state,
        evaluation,
        true_evaluation,
    )


def watch(side: TorchSide, true_side: TorchSide, before: TrainingState, batch: Batch) -> Watched:
    """One step of the reference and, where it is not exact itself, of the truth from the same state."""
    stepped, captured = side.train_and_capture(before, batch)
    optimized = side.optimize(before, stepped.gradients)
    true = stepped, captured, optimized
    if true_side is not side:
        true = (*true_side.train_and_capture(before, batch), true_side.optimize(before, stepped.gradients))
    return Watched(before, batch, stepped, captured, optimized, *true, Differentiated(), [])


def perturb(state: TrainingState, eps: float, seed: int, names: Sequence[str]) -> TrainingState:
    """Every element of every parameter moved up or down by one ulp, at random."""
    moved = moved_by({name: state.weights[name] for name in names}, eps, seed)
    return state._replace(weights={**state.weights, **moved})
