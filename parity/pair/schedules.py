"""The learning rates of both runs: the stage `schedule`."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.broken import described, of_port
from parity.entries import GIVEN
from parity.ledger import Ledger
from parity.pair.recipe import Rate, Recipe, scalar, untraced
from parity.stages import compare_schedule
from parity.widen_jax import widened
from twinstep.errors import UserError

Scheduler = torch.optim.lr_scheduler.LRScheduler
FLAT = "The learning rate is the same at all {} steps: what a schedule does later was not compared."


class TorchOptimizer(NamedTuple):
    """An optimizer of torch's with what sets its rates: a scheduler, a function of the step, or neither."""

    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    rate: Callable[[int], Any] | None

    def rates(self, step: int) -> list[float]:
        """Of every parameter group at this step, set before it."""
        groups = self.optimizer.param_groups
        if self.rate is not None:
            for group in groups:
                group["lr"] = rate_at(self.rate, step)
        return [float(group["lr"]) for group in groups]

    def step(self) -> None:
        """The update, and the scheduler's step after it. Raises UserError for an optimizer that raises."""
        try:
            self.optimizer.step()
        except Exception as error:
            raise UserError(f"the step of optimizers[0] raises {described(error)}") from error
        if self.scheduler is not None:
            self.scheduler.step()


def make_optimizer(recipe: Recipe, parameters: Iterable[torch.nn.Parameter]) -> TorchOptimizer:
    """torch's optimizer and its scheduler, both new. Raises UserError where they cannot be made."""
    assert recipe.optimizers is not None
    try:
        optimizer = recipe.optimizers[0](parameters)
    except Exception as error:
        raise UserError(f"optimizers[0] raises {described(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizers[0] returns {type(optimizer).__name__}; it must return a torch optimizer")
    if recipe.schedules is None:
        return TorchOptimizer(optimizer, None, None)
    made = scheduler_of(recipe.schedules[0], optimizer)
    return TorchOptimizer(optimizer, made, recipe.schedules[0] if made is None else None)


def scheduler_of(schedule: Callable[[Any], Any], optimizer: torch.optim.Optimizer) -> Scheduler | None:
    """The scheduler that it makes for the optimizer; None where it is a function from a step to a rate.

    Which of the two it is, shows when it is called: with the optimizer, and where it takes none, with step 0. Raises
    UserError where it is neither.
    """
    try:
        made = schedule(optimizer)
    except Exception as error:
        try:
            rate_at(schedule, 0)
        except UserError:
            raise UserError(f"schedules[0] raises {described(error)}") from error
        return None
    if isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise UserError("schedules[0] makes a ReduceLROnPlateau, whose rates depend on the run; it cannot be compared")
    if isinstance(made, Scheduler):
        return made
    rate_at(schedule, 0)
    return None


def rate_at(schedule: Callable[[int], Any], step: int) -> float:
    """torch's rate at this step, as a function gives it. Raises UserError if it does not."""
    try:
        found = schedule(step)
    except Exception as error:
        raise UserError(f"schedules[0] raises {described(error)} at step {step}") from error
    return float(scalar(found, f"schedules[0] of step {step}"))


def compare_schedules(ledger: Ledger, recipe: Recipe, module: torch.nn.Module, notes: list[str]) -> None:
    """Every rate of every step. module: for whose parameters optimizers can be made; it is not changed.

    Raises UserError for torch's part if it raises, PortError for JAX's.
    """
    if recipe.schedules is None:
        return
    ledger.now("schedule", "learning_rate")
    ours = torch_rates(recipe, module)
    theirs = recipe.schedules[1]
    port = [jax_rates(rate, recipe.steps) for rate in (theirs if isinstance(theirs, list | tuple) else [theirs])]
    if len(port) == 1 and (ours == ours[:, :1]).all():
        ours = ours[:, :1]
    if rest := list(range(len(port), ours.shape[1])):
        notes.append(f"Parameter groups of torch's optimizer without a schedule in JAX, not compared: {rest}.")
    compare_schedule(ledger, GIVEN, curves(ours.T[: len(port)]), curves(port))
    for late in (1, -1):
        if recipe.steps > 2 and not flat(ours) and shifted(ours[:, 0], port[0], late):
            notes.append(f"The port's learning rate is torch's of one step {'later' if late > 0 else 'before'}.")
    if flat(ours):
        notes.append(FLAT.format(recipe.steps))


def flat(rates: np.ndarray) -> bool:
    """Whether every group has one rate at all steps."""
    return bool((rates == rates[:1]).all())


def shifted(ours: np.ndarray, theirs: np.ndarray, late: int) -> bool:
    """Whether the port's rates are those of another step of torch's."""
    a, b = (ours[1:], theirs[:-1]) if late > 0 else (ours[:-1], theirs[1:])
    return np.allclose(a, b, rtol=1e-9, atol=0) and not np.allclose(ours, theirs, rtol=1e-9, atol=0)


def curves(rates: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """By the names under which they are entered."""
    return {f"learning_rate of group {n}" if n else "learning_rate": np.asarray(x) for n, x in enumerate(rates)}


def torch_rates(recipe: Recipe, module: torch.nn.Module) -> np.ndarray:
    """(steps, groups): the rates with which the steps are taken."""
    assert recipe.schedules is not None
    if recipe.optimizers is not None:
        module.zero_grad(set_to_none=True)  # so that an optimizer's step changes nothing
        optimizer = make_optimizer(recipe, module.parameters())
        rates = []
        for step in range(recipe.steps):
            rates.append(optimizer.rates(step))
            optimizer.step()
        return np.array(rates)
    try:
        return np.array([[rate_at(recipe.schedules[0], step)] for step in range(recipe.steps)])
    except UserError as error:
        raise UserError(f"{error}; a scheduler needs its optimizer: pass optimizers=, too") from error


def jax_rates(schedule: Rate, steps: int) -> np.ndarray:
    """(steps,) float64: as an optimizer calls it, with a traced count, in float64; with numbers if it must."""
    jitted = jax.jit(widened(schedule))
    rates = []
    for step in range(steps):
        with of_port():
            found = untraced(jitted, jnp.int32(step))
            rates.append(scalar(schedule(step) if found is None else found, f"schedules[1] of step {step}"))
    return np.array(rates)
