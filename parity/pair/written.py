"""What rounding a float64 check cannot undo: that of numbers which either side's code made in float32 before.

A rotary table that is kept as a buffer, a constant: widened later, they keep their rounding. How much of it reaches a
tensor is known from the same pass with the code's own casts at work, which rounds at least as much.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parity.broken import PortError
from parity.budget import relative
from parity.ledger import Ledger
from parity.pair.models import Pass, output_name
from parity.pair.stages import Compared, compare_pass
from twinstep.errors import UserError

MOST = 1e-2  # a larger distance is no rounding: masks that are drawn anew, say

Known = dict[tuple[str, str], float]  # stage and tensor -> relative L2 distance


Written = tuple[Callable[[], Pass], Callable[[], Pass]]  # torch's pass and the port's, with their casts at work


def judged_pass(
    empty: Ledger, what: Compared, ours: Pass, theirs: Pass, truth: Pass | None, written: Written | None
) -> tuple[Ledger, Compared]:
    """A ledger of one pass, of which the known rounding is allowed for where it does not agree without; and with it.

    written: in float64.
    """
    passed = replace(empty, entries={})
    compare_pass(passed, what, ours, theirs, truth)
    if written is None or passed.judge()[2] is None:
        return passed, what
    passed, what = replace(empty, entries={}), what._replace(known=known_rounding(what, (ours, theirs), written))
    compare_pass(passed, what, ours, theirs, truth)
    return passed, what


def known_rounding(what: Compared, passes: tuple[Pass, Pass], written: Written) -> Known:
    """Of every tensor, the larger of both sides' distances. passes: theirs widened, torch's and the port's.

    A side that cannot run in float64 as it is written has none.
    """
    found: Known = {}
    for side, wide, run in zip(("torch", "jax"), passes, written, strict=True):
        try:
            own = run()
        except (PortError, UserError, RuntimeError):
            continue
        for key, distance in distances(what, side, wide, own).items():
            found[key] = max(found.get(key, 0.0), distance if distance <= MOST else 0.0)
    return found


def distances(what: Compared, side: str, wide: Pass, written: Pass) -> Known:
    """By the keys under which the tensors are entered."""
    found: Known = {("loss", "loss"): distance(wide.loss, written.loss)}
    for name, layer in what.layers.items():
        own = name if side == "torch" else layer.tag
        for stage, kind, entered in (("activations", "activations", name), ("gradients", "gradients", f"d {name}")):
            arrays = [getattr(one, kind).get(own) for one in (wide, written)]
            if arrays[0] is not None and arrays[1] is not None:
                found[stage, entered] = distance(*arrays)
    for one in what.outputs:
        path = one.torch if side == "torch" else one.jax
        found["activations", output_name(one.torch)] = distance(wide.outputs[path], written.outputs[path])
    gradients = [one.param_gradients for one in (wide, written)]
    if side == "jax":
        gradients = [what.carried.back(one) for one in gradients]
    for name, gradient in gradients[0].items():
        found["gradients", name] = distance(gradient, gradients[1][name])
    return found


def distance(wide: np.ndarray, written: np.ndarray) -> float:
    """||written - wide|| / ||wide|| over the numbers that are finite."""
    return relative(*(np.nan_to_num(np.asarray(x, np.float64), posinf=0, neginf=0) for x in (wide, written)))
