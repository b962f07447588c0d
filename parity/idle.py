"""Numbers of a configuration that a check would not see change: a fault in them passes.

Each is nudged in the reference, which is then judged as a port is. Where no comparison goes beyond its budget, the
number is idle.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from parity.ledger import Ledger
from parity.reference import Reference
from parity.result import NO_PART, Idle
from parity.stages import (
    compare_activations,
    compare_buffers,
    compare_evaluation,
    compare_optimizers,
    compare_schedule,
    compare_step,
)
from parity.torch_side import TorchSide
from twinstep.config import Config, flag
from twinstep.data import Data

FACTOR = 0.9  # a number taken wrongly is rarely nearer; downwards, since many must stay below 1
PARTS = ("model", "optimizer")
MOST_ELEMENTS = 10_000_000  # of all parameters: a larger model would take as long to nudge as to check


@dataclass(frozen=True)
class Nudge:
    """A configuration with one number changed, or a context in which a constant is."""

    number: str
    config: Config
    changed: Callable[[], AbstractContextManager[Any]] = nullcontext


def find_idle(
    config: Config, data: Data, init: str, reference: Reference, device: torch.device | str = "cpu"
) -> list[Idle]:
    """The idle numbers of a check from one initialization; empty for a model too large to be nudged."""
    if sum(x.size for x in reference.weights.values()) > MOST_ELEMENTS:
        return []
    idle = [*unbranched(config, reference), *(Idle(number, "it is zero") for number in zeros(config))]
    known = {found.number for found in idle}
    for nudge in [*nudged_fields(config), *nudged_constants(config)]:
        if nudge.number in known:
            continue
        with nudge.changed():
            ledger = Ledger(config.train.dtype)
            if not any(moved(ledger, TorchSide(nudge.config, device), data, init, reference)):
                why = "what it changes is within the budgets" if changed(ledger) else NO_PART
                idle.append(Idle(nudge.number, why))
    return idle


def moved(ledger: Ledger, side: TorchSide, data: Data, init: str, reference: Reference) -> Iterator[bool]:
    """Comparison by comparison, the cheapest first: does any go beyond its budget?"""
    compare_schedule(ledger, init, reference.schedule, side.schedule())
    yield beyond(ledger)
    for step, at in reference.watched.items():
        stepped, captured = side.train_and_capture(at.before, at.batch)
        compare_activations(ledger, init, step, at.captured, captured, at.true_captured, at.serial.captured)
        compare_step(ledger, init, step, at.stepped, stepped, at.true_stepped, at.serial)
        compare_buffers(ledger, init, step, at.stepped, stepped, at.true_stepped)
        yield beyond(ledger)
        optimized = side.optimize(at.before, at.stepped.gradients)
        compare_optimizers(
            ledger, init, at.before, at.stepped.gradients, at.optimized, optimized, at.true_optimized, reference.labels
        )
        yield beyond(ledger)
    evaluation = side.evaluate(reference.end, data, side.config.train.eval_batches)
    compare_evaluation(
        ledger, init, side.config.train.steps, reference.evaluation, evaluation, reference.true_evaluation
    )
    yield beyond(ledger)


def beyond(ledger: Ledger) -> bool:
    """Whether any comparison so far diverges."""
    return ledger.judge()[2] is not None


def changed(ledger: Ledger) -> bool:
    """Whether any number that was compared is another than the reference's."""
    return any(e.error.port != e.error.reference for by_step in ledger.entries.values() for e in by_step.values())


def numbers(config: Config) -> Iterator[tuple[str, str, Any]]:
    """Part, field and value of every number that is no size of an array."""
    for part in PARTS:
        settings = getattr(config, part)
        for name in settings.BOUNDS:
            value = getattr(settings, name)
            if isinstance(value, float) or name in ("momentum_steps", "newton_schulz_steps"):
                yield part, name, value


def zeros(config: Config) -> Iterator[str]:
    """Flags whose number is zero: what it multiplies or adds is not there."""
    return (flag(name) for _, name, value in numbers(config) if value == 0)


def nudged_fields(config: Config) -> Iterator[Nudge]:
    """Each number by a tenth; counts, and the fractions of a run, by one step."""
    for part, name, value in numbers(config):
        if value == 0:
            continue
        if isinstance(value, int):
            nudged: float = value + 1
        elif name in ("warmup_fraction", "warmdown_fraction"):
            nudged = max(value - 1 / config.train.steps, 0.0)
        else:
            nudged = FACTOR * value
        yield Nudge(flag(name), replace(config, **{part: replace(getattr(config, part), **{name: nudged})}))


def nudged_constants(config: Config) -> Iterator[Nudge]:
    """Each floating-point constant of torch_ref's modules that a step reads, and each number of a tuple of them."""
    found = (vars(module).items() for module in constants_modules())
    constants = {name: value for items in found for name, value in items if name.isupper()}
    for name, value in constants.items():
        if isinstance(value, float):
            yield Nudge(name, config, changing(name, value, FACTOR * value))
        elif isinstance(value, tuple) and value and all(isinstance(x, float) for x in value):
            for i, x in enumerate(value):
                changed = (*value[:i], FACTOR * x, *value[i + 1 :])
                yield Nudge(f"{name}[{i}]", config, changing(name, value, changed))


def constants_modules() -> list[Any]:
    """torch_ref's own modules for a step; what generates text is not among them."""
    names = sorted(name for name in sys.modules if name.startswith("torch_ref.") and not name.endswith(".sampling"))
    return [sys.modules[name] for name in names]


def changing(name: str, old: Any, new: Any) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the constant has another value, wherever it was imported."""

    @contextmanager
    def changed() -> Iterator[None]:
        with ExitStack() as stack:
            for module in constants_modules():
                if vars(module).get(name) is old:
                    stack.enter_context(mock.patch.object(module, name, new))
            yield

    return changed


def unbranched(config: Config, reference: Reference) -> Iterator[Idle]:
    """Choices of the step that fell only one way, among the watched steps and in the evaluation."""
    limit = config.optimizer.clip_norm or math.inf
    clipped = [bool(at.stepped.grad_norm > limit) for at in reference.watched.values()]
    if len(set(clipped)) == 1:
        yield Idle("--clip-norm", "every gradient is clipped" if clipped[0] else "no gradient is clipped")
    evaluation = reference.evaluation
    if evaluation["bytes"] and evaluation["byte_nats"] == evaluation["nats"]:
        yield Idle("special tokens", "the evaluation holds none")
