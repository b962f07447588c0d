"""What both optimizers remember: moments by parameter, and how many steps they have counted."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import torch

from parity.capture import to_numpy
from parity.entries import GIVEN, Key
from parity.ledger import Ledger
from parity.pair.carrying import Carried
from parity.pair.trees import name_of

# optax's field, and torch's name for the same numbers.
KINDS = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer"}
COUNT = "count"


def compare_moments(
    ledger: Ledger,
    step: int,
    carried: Carried,
    names: Iterable[str],
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    optimizer: torch.optim.Optimizer,
    state: Any,
) -> None:
    """Under names such as "exp_avg/fc.weight", for the parameters of these `names`; a state without any is passed over.

    Counts are compared where both sides keep one.
    """
    held = dict(fields_of(state))
    for kind, theirs in KINDS.items():
        back = carried.back({leaf: np.asarray(x) for leaf, x in held.get(kind, {}).items() if leaf in carried.sources})
        for name, parameter in parameters:
            own = optimizer.state.get(parameter, {}).get(theirs)
            if own is not None and name in back and name in names:
                ours = to_numpy(own)
                ledger.enter(
                    Key("update", f"{theirs}/{name}", GIVEN, theirs), step, ours, back[name].astype(ours.dtype)
                )
    counted = [int(own["step"]) for own in optimizer.state.values() if "step" in own]
    for number, count in enumerate(held.get(COUNT, {}).values()):
        if counted:
            ledger.enter(
                Key("update", f"count {number}", GIVEN, "count"), step, np.float64(counted[0]), np.float64(count)
            )


def fields_of(state: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields of optax's states that KINDS and COUNT name, each with its arrays by the leaf that they belong to."""
    found: dict[str, dict[str, Any]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        keys = [getattr(key, "name", None) for key in path]
        for kind in (*KINDS, COUNT):
            if kind in keys:
                rest = path[keys.index(kind) + 1 :]
                known = found.setdefault(kind, {})
                known[name_of(rest, x) if rest else str(len(known))] = x
    yield from found.items()
