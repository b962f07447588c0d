"""Clipping and updates from torch's gradients and parameters, step by step; beside them a run of the port's own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.budget import EPS, TRAJECTORY_LOSS, relative
from parity.entries import GIVEN, Key
from parity.envelope import PERTURBATIONS, compare_losses, enter_within, moved_by, watched_steps
from parity.ledger import Ledger
from parity.pair.clipping import compare_clipping
from parity.pair.masks import Mask
from parity.pair.models import JaxModel
from parity.pair.moments import compare_moments
from parity.pair.recipe import Recipe
from parity.pair.stages import Compared, loss_tolerance
from parity.pair.torch_model import TorchModel, load
from parity.pair.training import JaxOptimizer, TorchTraining, like, train_port
from parity.result import Curve

Named = Mapping[str, Any]


@dataclass
class Run:
    """torch's run: losses of every step, the budget of each by itself, and parameters after the watched steps."""

    losses: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    masks: list[tuple[Mask, ...]] = field(default_factory=list)
    weights: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)


@dataclass
class Updates:
    """What is compared over the steps of a recipe.

    Of a parameter that feeds two leaves, or is added to another in one, the update is not that of a leaf: left out.

    original: makes the reference, at the weights as given. trained: torch's parameters that are.
    leaves, buffers: the port's.
    """

    ledger: Ledger
    recipe: Recipe
    original: Callable[[], TorchModel]
    port: JaxModel
    what: Compared
    trained: list[str]
    leaves: dict[str, Any]
    buffers: dict[str, Any]
    notes: list[str]
    optimizer: JaxOptimizer = field(init=False)
    compared: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = JaxOptimizer(self.port, self.recipe, self.leaves)
        self.compared = self.what.carried.copied() & set(self.trained)
        if left := [name for name in self.trained if name not in self.compared]:
            self.notes.append(NOT_ALONE.format(", ".join(left)))

    def compare(self) -> list[Curve]:
        """All of it; the curves of the free run. Of clipping alone, without optimizers, the first step."""
        if self.recipe.optimizers is None:
            if self.recipe.clip is not None:
                model = replace(self.original(), inputs=self.recipe.ours[0])
                model.run()
                self.compare_clipping(0, model)
            return []
        run = self.compare_local()
        found = self.compare_free(run, *self.envelope(run))
        self.port.casts += [cast for cast in self.optimizer.own_casts() if cast not in self.port.casts]
        return [found]

    def compare_local(self) -> Run:
        """torch's run; beside each step the port's clipping and optimizer, from torch's gradients and parameters."""
        training, run = TorchTraining(self.original(), self.recipe), Run()
        state = self.optimizer.start(self.leaves)[1]
        for step in range(self.recipe.steps):
            before = training.model.parameters()
            passed = training.backward(step)
            run.losses.append(float(passed.loss))
            run.masks.append(passed.masks if self.port.masks else ())
            run.least.append(loss_tolerance(self.ledger, self.what, passed).value)
            watched = step in watched_steps(self.recipe.steps)
            if watched:
                self.compare_clipping(step, training.model)
            clipped = training.update(step)
            after = training.model.parameters()

            self.ledger.now("update", "optimizer", step)
            found = self.optimizer.update(self.gradients(clipped), state, self.at(before))
            state = found.state
            if watched:
                moved = {name: after[name] - before[name] for name in after}
                self.enter("update", step, moved, found.updates)
                compare_moments(
                    self.ledger,
                    step,
                    self.what.carried,
                    self.compared,
                    list(training.model.module.named_parameters()),
                    training.optimizer.optimizer,
                    state,
                )
                self.enter("parameters", step, after, found.leaves)
                run.weights[step] = {name: x for name, x in after.items() if name in self.compared}
        return run

    def compare_clipping(self, step: int, model: TorchModel) -> None:
        """Of torch's gradients as they are after the backward pass."""
        if self.recipe.clip is None:
            return
        self.ledger.now("clip", "clipping", step)
        at = self.at(model.parameters())
        state = self.optimizer.start(at)[0]

        def theirs(gradients: Named) -> dict[str, np.ndarray]:
            found = self.optimizer.clip(self.gradients(gradients), state, at)[0]
            return self.what.carried.back(host(found))

        with model.arithmetic():
            compare_clipping(self.ledger, step, self.recipe.clip, model.module, theirs, self.compared, self.notes)

    def envelope(self, run: Run) -> tuple[list[list[float]], dict[tuple[int, str], float]]:
        """torch's run again from perturbed parameters: the losses of each, and how far each tensor is off at most.

        By one ulp; by what is known of the rounding of numbers that the code made in float32, where that is more.
        """
        eps = max([EPS["float64"], *self.known_rounding()])
        losses: list[list[float]] = []
        widths: dict[tuple[int, str], float] = {}
        for seed in range(PERTURBATIONS):
            training = TorchTraining(self.original(), self.recipe)
            load(training.model.module, moved_by(training.model.parameters(), eps, seed))
            losses.append([])
            for step in range(self.recipe.steps):
                losses[-1].append(float(training.backward(step).loss))
                training.update(step)
                after = training.model.parameters() if step in run.weights else {}
                for name, array in run.weights.get(step, {}).items():
                    widths[step, name] = max(widths.get((step, name), 0.0), relative(array, after[name]))
        return losses, widths

    def known_rounding(self) -> list[float]:
        """Of the activations."""
        return [rounding for (stage, _), rounding in self.what.known.items() if stage == "activations"]

    def compare_free(self, run: Run, moved: list[list[float]], widths: Mapping[tuple[int, str], float]) -> Curve:
        """The port's own run, as far from torch's as a run of torch's from perturbed parameters may be."""
        self.ledger.now("trajectory", "run")
        losses = []
        trains = train_port(self.port, self.recipe, self.optimizer, self.leaves, self.buffers, run.masks)
        for step, trained in enumerate(trains):
            losses.append(float(trained.loss))
            if step in run.weights:
                back = self.what.carried.back(host(trained.leaves))
                for name, array in run.weights[step].items():
                    key = Key("trajectory", name, GIVEN, "parameter")
                    port = np.asarray(back[name], array.dtype)
                    enter_within(self.ledger, key, step, array, port, widths[step, name])
        ceiling = None if self.known_rounding() else TRAJECTORY_LOSS
        return compare_losses(self.ledger, GIVEN, run.losses, losses, moved, ceiling, run.least)

    def gradients(self, gradients: Named) -> dict[str, Any]:
        """torch's by the leaves; zero where torch has none."""
        none = {leaf: np.zeros(x.shape) for leaf, x in self.leaves.items()}
        return like(self.leaves, self.what.carried.gradients({**self.zeros(), **gradients}, none))

    def at(self, parameters: Named) -> dict[str, Any]:
        """torch's parameters as leaves."""
        return like(self.leaves, self.what.carried.leaves({**self.zeros(), **parameters}, host(self.leaves)))

    def zeros(self) -> dict[str, np.ndarray]:
        """Of torch's arrays."""
        return {name: np.zeros(shape) for name, shape in self.what.carried.shapes.items()}

    def enter(self, stage: str, step: int, ours: Named, theirs: Named) -> None:
        """Every parameter that is compared beside the leaf it feeds."""
        back = self.what.carried.back(host(theirs))
        for name, array in ours.items():
            if name in self.compared:
                key = Key(stage, name, GIVEN, "parameter")
                self.ledger.enter(key, step, array, np.asarray(back[name], array.dtype))


def host(named: Named) -> dict[str, np.ndarray]:
    """As NumPy arrays."""
    return {name: np.asarray(x) for name, x in named.items()}


NOT_ALONE = (
    "Clipping and updates of these were not compared, since no leaf holds them alone: {}. A port that holds an array "
    "twice, or two added up, trains them otherwise."
)
