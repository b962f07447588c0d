"""Sentences to read beside a verdict: what has no counterpart, what was cast, what did not run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from parity.budget import BULK, TOLERANCES
from parity.exercised import Lines, not_run
from parity.lines.line import Line
from parity.pair.layers import is_output
from parity.pair.masks import Mask
from parity.pair.models import Pass
from parity.pair.recipe import STAGES, Recipe
from parity.pair.stages import Compared
from parity.result import Divergence, TensorResult

if TYPE_CHECKING:
    import torch

MOST = 8  # names in one sentence


def left_out(what: Compared, ours: Pass, theirs: Pass) -> list[str]:
    """What one side has and the other lacks, and was therefore not compared."""
    notes = []
    outputs = {one.torch for one in what.outputs}, {one.jax for one in what.outputs}
    for side, found, matched in (("torch", ours.outputs, outputs[0]), ("the port", theirs.outputs, outputs[1])):
        if rest := [path or "the bare array" for path in found if path not in matched]:
            notes.append(f"Outputs of {side} that were not compared: {', '.join(rest)}.")
    missing = [name for name in ours.activations if name not in what.layers and not is_output(name)]
    if what.layers and missing:
        notes.append(f"Layers of torch without a tag in JAX, not compared: {some(missing)}.")
    leaves = [leaf for leaf in theirs.param_gradients if leaf not in what.carried.sources]
    if leaves:
        notes.append(f"Gradients of leaves that nothing of torch's feeds, not compared: {some(leaves)}.")
    return notes


def of_casts(torch_casts: Sequence[Line], jax_casts: Sequence[Line]) -> list[str]:
    """Where the code of either side narrows numbers, which a float64 check widens."""
    found = (("torch", torch_casts), ("JAX", jax_casts))
    return [
        f"Casts to a narrower float in {side}, computed in float64 here: {some(list(map(str, casts)))}."
        for side, casts in found
        if casts
    ]


def of_narrow(parts: Sequence[str]) -> list[str]:
    """What of the port computes as it is written, since nothing outside can widen it."""
    return [f"Not widened to float64, and computed as written in JAX: {some(parts)}."] if parts else []


def of_dropout(module: "torch.nn.Module", replayed: Sequence[Mask]) -> list[str]:
    """Modules that drop at random: no port can match their masks, unless it is given them."""
    import torch

    if replayed:
        return []
    kinds = torch.nn.modules.dropout._DropoutNd
    dropping = [
        name for name, part in module.named_modules() if isinstance(part, kinds) and part.training and part.p > 0
    ]
    if not dropping:
        return []
    return [
        f"In train mode these drop at random, which no port can match: {some(dropping)}; set p to 0, or call eval()."
    ]


def of_recipe(recipe: Recipe) -> list[str]:
    """The stages of a recipe of which nothing was handed in; none where only the model is compared."""
    missing = [stage for name, stage in STAGES.items() if getattr(recipe, name) is None]
    if not recipe.given or not missing:
        return []
    arguments = [f"{name}=" for name, stage in STAGES.items() if stage in missing]
    return [f"Not compared, since nothing of it was handed in ({', '.join(arguments)}): {', '.join(missing)}."]


def interval(first: Divergence | None, tensors: Sequence[TensorResult], ours: Pass | None) -> list[str]:
    """The last layer that agrees before the first that does not, and what lies between uncompared."""
    if first is None or ours is None or first.stage != "activations" or first.tensor not in ours.activations:
        return []
    judged = {t.tensor: t.status[0] for t in tensors if t.stage == "activations" and t.status}
    order = list(ours.activations)
    before = order[: order.index(first.tensor)]
    agreeing = [name for name in before if judged.get(name) == "agrees"]
    between = before[before.index(agreeing[-1]) + 1 :] if agreeing else before
    start = f"{agreeing[-1]} still agrees" if agreeing else "Nothing before it was compared"
    rest = f"; between them, not compared: {some(between)}" if between else ""
    return [f"{start}, {first.tensor} does not{rest}."]


def of_rounding(tensors: Sequence[TensorResult]) -> list[str]:
    """The tensors that agree only within the rounding of numbers which the code made in float32 before."""
    wide = {
        stage: tolerance.value for stage, tolerance in TOLERANCES["float64"].items() if tolerance.kind == "relative"
    }
    needed = [
        f"{t.tensor} ({error:.0e})"
        for t in tensors
        for error, budget, status in zip(t.relative_l2, t.budget, t.status, strict=True)
        if t.stage in BULK and status == "agrees" and wide[t.stage] < error <= budget
    ]
    if not needed:
        return []
    return [
        "Beyond the budget of float64, and judged by the rounding of tables and constants that the code itself makes "
        f"in float32: {some(needed)}."
    ]


def lines_left_out(lines: Lines, function: Callable[..., Any]) -> list[str]:
    """A note on the lines that did not run of functions that did, where the port's file is known.

    A function in which the port itself is defined ran before.
    """
    around = getattr(function, "__qualname__", "").split(".<locals>")[:-1]
    return [
        f"Lines of {missing.function} in {missing.file} that did not run, and were not compared: "
        f"{', '.join(map(str, missing.lines))}."
        for path in lines.statements
        for missing in not_run(lines, path.parent)
        if not missing.whole and missing.function not in around
    ]


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    rest = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {rest} more" if rest > 0 else "")
