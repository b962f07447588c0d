"""The two sides of a comparison put in order: parameters read, weights found, outputs and layers matched."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from parity.capture import to_numpy
from parity.pair import carrying, layers
from parity.pair.carrying import Carried, Convert, converted, place_of
from parity.pair.loss import Output, random_weights
from parity.pair.models import COUNTERS, JaxModel, Pass, TorchModel
from parity.pair.outputs import axes_between, floating, match_outputs
from parity.pair.trees import Tree, read_tree
from parity.rules import Rule
from parity.scan_names import by_layer
from twinstep.errors import UserError

AUTO: Literal["auto"] = "auto"
Rules = Literal["auto"] | Sequence[Rule]


class Port(NamedTuple):
    """The port's parameters and buffers as they are given."""

    params: Tree
    buffers: Tree | None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All of them by name."""
        return {**self.params.arrays, **(self.buffers.arrays if self.buffers else {})}

    def apart(self, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays by name, those of the parameters and those of the buffers."""
        return tuple({n: arrays[n] for n in tree.arrays} if tree else {} for tree in self)  # type: ignore[return-value]


def read_port(params: Any, convert: Convert | None, module: torch.nn.Module, buffers: Any) -> Port:
    """Raises UserError where there are no parameters."""
    if params is None and convert is None:
        raise UserError("params is None; pass the port's parameters, or convert=, which makes them")
    tree = (
        read_tree(params, "params")
        if convert is None or params is not None
        else converted(convert, module.state_dict())
    )
    held = None if buffers is None else read_tree(buffers, "buffers")
    if held is not None and (both := sorted(set(tree.arrays) & set(held.arrays))):
        raise UserError(f"params and buffers both have a leaf {both[0]!r}; rename one")
    return Port(tree, held)


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers as NumPy arrays, each once, under the first of its names; counters are left out."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: to_numpy(tensor) for name, tensor in held.items() if not name.endswith(COUNTERS)}


def carry(weights: Rules, convert: Convert | None, module: torch.nn.Module, port: Port) -> Carried:
    """How the port's leaves are made of torch's arrays. Raises UserError for rules that do not match up."""
    arrays = arrays_of(module)
    if weights != AUTO:
        state = module.state_dict()
        first: dict[Any, str] = {}
        names = {name: first.setdefault(place_of(tensor), name) for name, tensor in state.items()}
        return carrying.by_rules(weights, {n: to_numpy(x) for n, x in state.items()}, port.arrays, names)
    if convert is not None:
        found = carrying.by_conversion(convert, module.state_dict(), arrays)
        if set(found.sources) | set(found.missing) == set(port.arrays):
            return found
    return carrying.by_value(arrays, port.arrays)


def pair_outputs(
    reference: TorchModel,
    port: JaxModel,
    leaves: Mapping[str, Any],
    buffers: Mapping[str, Any],
    given: Mapping[str, str] | None,
    where: np.ndarray | None,
) -> list[Output]:
    """Which output is compared with which, in which layout. Raises UserError where that cannot be known."""
    ours = reference.outputs()  # first, since a module that raises is bad input
    theirs = floating(port.shapes(leaves, buffers))
    values: dict[str, np.ndarray] = {}
    found = []
    for number, (path, other) in enumerate(match_outputs(ours, theirs, given).items()):
        x = ours[path]
        if where is not None and x.shape[: where.ndim] != where.shape:
            raise UserError(f"where has shape {where.shape}, torch's output {x.shape}; it must fit the leading axes")
        if x.shape != theirs[other].shape and sorted(x.shape) == sorted(theirs[other].shape):
            values = values or port.values(leaves, buffers)
        axes = axes_between(x, values.get(other, x))
        found.append(Output(path, other, axes, random_weights(x.shape, number, where)))
    return found


def one_by_one(theirs: Pass, rules: Rules, ours: Pass) -> Pass:
    """Layers of a scan, "norm[1]", under the names of those without: those of torch, or those that rules lead to."""
    known = list(ours.activations)
    if rules != AUTO:
        known = [layer.tag for name in ours.activations for layer in layers.tags_of(rules, name)]
    return theirs._replace(activations=by_layer(known, theirs.activations), gradients=by_layer(known, theirs.gradients))


def pair_layers(rules: Rules, ours: Pass, theirs: Pass, carried: Carried) -> dict[str, layers.Layer]:
    """torch's module -> its tag; the whole model's output is no layer."""
    names = [name for name in ours.activations if not layers.is_output(name)]
    tags = [tag for tag in theirs.activations if not layers.is_output(tag)]
    if rules == AUTO:
        return layers.by_name_or_weights(names, tags, carried.sources)
    return layers.by_rules(rules, names, tags)


def projection(function: Callable[..., Any], outputs: list[Output]) -> Callable[..., Any]:
    """A loss that needs no targets."""
    return lambda output, *args, **kwargs: function(outputs, output)
