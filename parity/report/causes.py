"""Of all tensors that diverge, those that are wrong by themselves, and not because one before them is."""

from typing import NamedTuple

from parity.report.heat import Comparison, comparisons
from parity.result import STAGES, Result, TensorResult

# What a stage is computed from, where that is not all stages before it; the rest is the reference's.
FOLLOWS: dict[str, tuple[str, ...]] = {
    "weights": (),
    "schedule": (),
    "activations": ("weights",),
    "loss": ("weights", "activations"),
    "gradients": ("weights", "activations", "loss"),
    "clip": (),
    "update": ("weights", "schedule", "clip"),
    "parameters": ("weights", "schedule", "clip", "update"),
    "evaluation": ("weights", "activations", "loss"),
}
NORM = "global norm before"  # the one number of stage clip that is of the port's own gradients


class Causes(NamedTuple):
    """listed: each at the first step at which it diverges, the first divergence first. rest: how many follow."""

    listed: list[Comparison]
    rest: int


def causes(result: Result) -> Causes:
    """The tensors of the first stage that diverges, and of later stages those that nothing before explains."""
    first: dict[int, Comparison] = {}
    for c in comparisons(result):
        if c.status == "diverges":
            first.setdefault(id(c.tensor), c)
    wrong = {c.tensor.stage for c in first.values()}
    own = [c for c in first.values() if not wrong.intersection(before(c.tensor))]
    inits = list(dict.fromkeys(t.init for t in result.tensors))
    own.sort(key=lambda c: (STAGES.index(c.tensor.stage), inits.index(c.tensor.init), c.step))
    return Causes(own, len(first) - len(own))


def before(t: TensorResult) -> tuple[str, ...]:
    """The stages from which a tensor follows."""
    if t.tensor == NORM:
        return ("gradients",)
    if t.stage == "parameters" and not t.group:  # running statistics
        return ("weights", "activations")
    return FOLLOWS.get(t.stage, STAGES[: STAGES.index(t.stage)])
