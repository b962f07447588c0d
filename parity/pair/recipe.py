"""What surrounds the two models in a training run, as it is handed in: pairs of torch's part and JAX's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from parity.pair.inputs import Inputs
from twinstep.errors import UserError

if TYPE_CHECKING:
    import torch

MOST_STEPS = 200  # beyond which rounding has grown too large to tell anything
RECIPE = ("optimizers", "batches", "schedules", "clip", "metrics")
STAGES = {"batches": "data", "schedules": "schedule", "clip": "clip", "metrics": "evaluation"}

Optimizers = tuple[Callable[[Iterable["torch.nn.Parameter"]], "torch.optim.Optimizer"], optax.GradientTransformation]
Data = Iterable[Any] | Callable[[int], Any]  # what a pipeline yields, step by step, or a function of the step
Batches = tuple[Data, Data]
Rate = Callable[[Any], Any]  # step -> learning rate
Schedules = tuple[Callable[[Any], Any], Rate | list[Rate]]
Clip = tuple[Callable[[list["torch.nn.Parameter"]], Any], optax.GradientTransformation | Callable[[Any], Any]]
Metric = Callable[..., float | Mapping[str, float]]
Metrics = tuple[Metric, Metric]


class Recipe(NamedTuple):
    """All of it; None for what was not handed in. ours, theirs: the inputs of each step, torch's and the port's."""

    optimizers: Optimizers | None
    batches: Batches | None
    schedules: Schedules | None
    clip: Clip | None
    metrics: Metrics | None
    steps: int
    ours: Sequence[Inputs] = ()
    theirs: Sequence[Inputs] = ()

    @property
    def given(self) -> list[str]:
        """The arguments that were handed in."""
        return [name for name in RECIPE if getattr(self, name) is not None]


def read_recipe(recipe: Recipe, dtype: str) -> Recipe:
    """The same. Raises UserError for what is no pair of two parts that can be called, and for a dtype or steps that
    cannot be.
    """
    if recipe.given and dtype != "float64":
        are = f"{recipe.given[0]} {'are' if recipe.given[0].endswith('s') else 'is'}"
        raise UserError(f"{are} compared in float64 only, and dtype is {dtype!r}; leave one of the two out")
    if isinstance(recipe.steps, bool) or not isinstance(recipe.steps, int) or not 1 <= recipe.steps <= MOST_STEPS:
        raise UserError(f"steps is {recipe.steps!r}; pass a number from 1 to {MOST_STEPS}")
    for name in recipe.given:
        pair = getattr(recipe, name)
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"{name} is of type {type(pair).__name__}; pass a pair: torch's and JAX's")
        for number, part in enumerate(pair):
            if not fits(name, number, part):
                raise UserError(f"{name}[{number}] is of type {type(part).__name__}; pass {WANTED[name][number]}")
    return recipe


WANTED = {
    "optimizers": ("a function from parameters to a torch optimizer", "an optax transformation"),
    "batches": ("the batches of torch's run, an iterable or a function of the step", "those of the port's run"),
    "schedules": (
        "a function from an optimizer to its scheduler, or from a step to a rate",
        "an optax schedule, a function from a step to a rate, or a list of them, one for each parameter group",
    ),
    "clip": (
        "a function that clips the .grad of a list of parameters in place",
        "an optax transformation, or a function from gradients to gradients",
    ),
    "metrics": ("a function (output, *inputs) of torch's", "a function (output, *inputs) of JAX's"),
}


def fits(name: str, number: int, part: Any) -> bool:
    """Whether half of a pair can be what it should be."""
    transformation = hasattr(part, "init") and hasattr(part, "update")
    if name == "optimizers" and number == 1:
        return transformation
    if name == "batches":
        return callable(part) or isinstance(part, Iterable)
    if name == "clip" and number == 1:
        return transformation or callable(part)
    if name == "schedules" and number == 1 and isinstance(part, tuple | list):
        return bool(part) and all(map(callable, part))
    return callable(part)


def untraced(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, and None where it is one that JAX cannot trace: it wants numbers."""
    try:
        return function(*args)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ):
        return None


def scalar(x: Any, what: str) -> np.float64:
    """A single number of either framework. Raises UserError for anything else."""
    array = x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
    if array.size != 1 or not (array.dtype == bool or jax.numpy.issubdtype(array.dtype, np.number)):
        shape = f"an array of shape {array.shape}" if array.ndim else f"of type {type(x).__name__}"
        raise UserError(f"{what} is {shape}; it must be one number")
    return np.float64(array.reshape(()))
