"""What both data pipelines yield, step by step: the stage `data`."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import jax.numpy as jnp
import numpy as np

from parity.broken import described, of_port
from parity.budget import Tolerance, relative
from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.inputs import Inputs, read_inputs, wide
from parity.pair.outputs import axes_between
from parity.pair.recipe import Data, Recipe
from twinstep.errors import UserError

EXACT = Tolerance("exact", 0.0, "indices and labels are copied, not computed")
ROUNDINGS = 4  # of the narrower type: what scaling and centering may do in another order


def with_batches(
    ledger: Ledger, recipe: Recipe, read: Inputs, port_read: Inputs, any_size: bool, notes: list[str]
) -> Recipe:
    """The recipe with each side's inputs of every step, which are compared; those of one call where it has no batches.

    Where the port's differ from torch's by rounding alone, the port goes on with torch's numbers. Raises UserError for
    batches that are not of the structure of the inputs (of their shapes too, unless `any_size`), and for torch's
    pipeline if it raises or ends too early; PortError for the port's.
    """
    if recipe.batches is None:
        return recipe._replace(ours=[read] * recipe.steps, theirs=[port_read] * recipe.steps)
    ledger.now("data", "batches")
    ours = read_batches(recipe.batches[0], recipe.steps, read, "batches[0]", "inputs")
    for step, batch in enumerate(ours):
        if not any_size and (shapes := batch.shapes()) != read.shapes():
            raise UserError(
                f"batches[0] of step {step} has arrays of the shapes {shapes}, inputs of {read.shapes()}; "
                "pass losses=, since the loss that is ours is made for one shape of the output"
            )
    with of_port():
        taken = list(taken_from(recipe.batches[1], recipe.steps, "batches[1]"))
    like = "inputs" if port_read is read else "jax_inputs"
    theirs = [read_batch(batch, port_read, f"batches[1] of step {n}", like) for n, batch in enumerate(taken)]
    return recipe._replace(ours=ours, theirs=compare_batches(ledger, ours, theirs, notes))


def read_batches(batches: Data, steps: int, like: Inputs, what: str, name: str) -> list[Inputs]:
    """torch's. like: the inputs, whose `name` it is."""
    try:
        taken = list(taken_from(batches, steps, what))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} raises {described(error)}") from error
    return [read_batch(batch, like, f"{what} of step {step}", name) for step, batch in enumerate(taken)]


def taken_from(batches: Data, steps: int, what: str) -> Iterator[Any]:
    """One batch for each step. Raises UserError where there are fewer."""
    if not isinstance(batches, Iterable):
        yield from map(batches, range(steps))
        return
    count = 0
    for batch in islice(batches, steps):
        count += 1
        yield batch
    if count < steps:
        raise UserError(f"{what} ends after {count} batches, and steps is {steps}; pass as many, or fewer steps")


def read_batch(batch: Any, like: Inputs, what: str, name: str) -> Inputs:
    """One batch, with arguments as the inputs have them; what is no array must be equal."""
    found = read_inputs(batch, what)
    for (where, x), (other, y) in zip(found.named(), like.named(), strict=False):
        arrays = isinstance(x, np.ndarray), isinstance(y, np.ndarray)
        if where != other or arrays[0] != arrays[1] or not (arrays[0] or x == y):
            raise UserError(f"{what} has {shown(where, x)} where {name} has {shown(other, y)}; they must fit")
    if len(found.named()) != len(like.named()):
        counts = len(found.named()), len(like.named())
        raise UserError(f"{what} has {counts[0]} arguments, and {name} {counts[1]}; they must fit")
    return found


def shown(where: str, x: Any) -> str:
    """One argument in a few words."""
    return f"an array at {where!r}" if isinstance(x, np.ndarray) else f"{x!r:.40} at {where!r}"


def compare_batches(ledger: Ledger, ours: list[Inputs], theirs: list[Inputs], notes: list[str]) -> list[Inputs]:
    """Every array of every step, by its name; in order where the names differ. Returns the port's, see above."""
    names = [[name for name, x in one[0].named() if isinstance(x, np.ndarray)] for one in (ours, theirs)]
    pairs = [(name, name) for name in names[0] if name in names[1]]
    if not pairs and len(names[0]) == len(names[1]):
        pairs = list(zip(*names, strict=True))
    if alone := [n for side, known in enumerate(names) for n in known if n not in [pair[side] for pair in pairs]]:
        notes.append(f"Arrays of the batches without one of the same name on the other side, not compared: {alone}.")
    axes = {name: axes_between(dict(ours[0].named())[name], dict(theirs[0].named())[other]) for name, other in pairs}
    found = []
    for step, b in enumerate(theirs):
        arrays = dict(b.named())
        for name, other in pairs:
            mine = {number: in_layout(dict(one.named())[name], axes[name]) for number, one in enumerate(ours)}
            arrays[other] = enter_array(ledger, name, step, mine, arrays[other])
        found.append(b.with_arrays([x for x in arrays.values() if isinstance(x, np.ndarray)]))
    return found


def in_layout(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """torch's array in the port's layout."""
    return x.transpose(axes) if axes and len(axes) == x.ndim else x


def enter_array(ledger: Ledger, name: str, step: int, mine: dict[int, np.ndarray], port: np.ndarray) -> np.ndarray:
    """Enter one array: exactly, but for rounding where both are floating. mine: torch's by step.

    Returns what the port goes on with.
    """
    key, ours = Key("data", name, GIVEN), mine[step]
    floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (ours, port))
    within = rounding_of(ours, port) if floating else EXACT
    same = ours.shape == port.shape and (np.array_equal(ours, port) or relative(ours, port) <= within.value)
    if not same and (others := [n for n, x in mine.items() if np.array_equal(x, port)]):
        ledger.refuse(key, step, f"it is torch's batch of step {others[0]}")
        return port
    ledger.enter(key, step, wide(ours), wide(port), tolerance=within)
    return ours if same and floating else port


def rounding_of(a: np.ndarray, b: np.ndarray) -> Tolerance:
    """What numbers of these types may differ by."""
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (a, b))
    return Tolerance("relative", ROUNDINGS * eps, "a few roundings of the numbers' own type")
