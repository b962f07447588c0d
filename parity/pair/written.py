"""What rounding a float64 check cannot undo: that of numbers which either side's code made in float32 before.

A rotary table that is kept as a buffer, a constant: widened later, they keep their rounding. How much of it reaches a
tensor is known from the same pass with the code's own casts at work, which rounds at least as much.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.broken import PortError
from parity.budget import relative
from parity.pair.models import JaxModel, Pass, TorchModel, output_name
from parity.pair.stages import Compared
from twinstep.errors import UserError

MOST = 1e-2  # a larger distance is no rounding: masks that are drawn anew, say

Known = dict[tuple[str, str], float]  # stage and tensor -> relative L2 distance


def known_rounding(
    what: Compared,
    reference: TorchModel,
    port: JaxModel,
    leaves: Mapping[str, Any],
    buffers: Mapping[str, Any],
    passes: tuple[Pass, Pass],
) -> Known:
    """Of every tensor, the larger of both sides' distances. passes: theirs widened, torch's and the port's.

    A side that cannot run in float64 as it is written has none.
    """
    ours, theirs = passes
    found: Known = {}
    for side, wide, run in (
        ("torch", ours, reference.as_written),
        ("jax", theirs, lambda: port.as_written(leaves, buffers)),
    ):
        try:
            written = run()
        except (PortError, UserError, RuntimeError):
            continue
        for key, distance in distances(what, side, wide, written).items():
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
