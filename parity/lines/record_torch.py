"""What torch computes, operation by operation: values' fingerprints, lines, and what depends on what."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parity.lines.decompose_torch import parts_of, unfused
from parity.lines.fingerprint import Fingerprint, fingerprint
from parity.lines.frames import running_lines
from parity.lines.graph import Graph, Node
from parity.lines.line import Line
from parity.lines.tensors import Held, Tensors, is_plain, numbers

# Operations in place that do not read what they overwrite.
FILLS = ("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_")


class Where(NamedTuple):
    """Where an operation is called."""

    line: Line | None
    library: Line | None
    backward: bool


def record_torch(
    run: Callable[[], Mapping[str, torch.Tensor]],
    leaves: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
) -> Graph:
    """The operations of one run: a forward pass, perhaps its backward pass, perhaps an optimizer's step.

    `leaves` are parameters and buffers. What `run` returns are the graph's results, by name. Fused operations are
    computed by their parts. Tensors that are neither made in the run nor given here are constants.
    """
    recorder = Recorder()
    for op, given in (("parameter", leaves), ("input", inputs)):
        for name, tensor in given.items():
            if recorder.tensors.held(tensor) is None:
                recorder.leaf(op, tensor, name)
    with unfused(), recorder:
        outputs = run()
    return Graph(recorder.nodes, {name: recorder.node_of(tensor) for name, tensor in outputs.items()})


class Recorder(TorchDispatchMode):
    """Entered last, and so called first, with what autograd makes of the user's calls."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.tensors = Tensors()
        self.sequence: list[int] = []  # autograd's numbers of the forward operations, ascending
        self.forward: list[Where] = []  # and where each was called
        self.whole: Where | None = None  # where the fused operation was called whose parts run

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The operation; by its parts, if it has any."""
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and is_plain(x)]
        where = self.whole or self.find(given)
        if (parts := parts_of(func, args, kwargs)) is not None:
            with self.parts_at(where), self:
                output = parts(*args, **kwargs)
            if output is not NotImplemented:
                return output
        return self.record(func, args, kwargs, given, where)

    @contextmanager
    def parts_at(self, where: Where) -> Iterator[None]:
        """Within it every operation is called at one place."""
        before, self.whole = self.whole, where
        try:
            yield
        finally:
            self.whole = before

    def find(self, given: list[torch.Tensor]) -> Where:
        """Where an operation is called; one of the backward pass where that of the forward pass was, if not itself."""
        derivative = torch._C._current_autograd_node()
        line, library = running_lines(recorded=True)
        where = Where(line, library, derivative is not None)
        number = torch.autograd._get_sequence_nr() - 1  # that of the newest in the graph: this one, before it is run
        if any(x.requires_grad for x in given) and (not self.sequence or number > self.sequence[-1]):
            self.sequence.append(number)
            self.forward.append(where)
        if derivative is None or line is not None:
            return where
        if derivative.name() == "torch::autograd::AccumulateGrad":
            known = [self.nodes[self.node_of(x)] for x in given]
            return Where(known[-1].line, known[-1].library, True) if known else where
        place = bisect_right(self.sequence, derivative._sequence_nr()) - 1
        return self.forward[place]._replace(backward=True) if place >= 0 else where

    def record(self, func: Any, args: tuple, kwargs: dict, given: list[torch.Tensor], where: Where) -> Any:
        """The operation as it is, and a node of each of its outputs."""
        written, unread = writes_of(func, args, kwargs)
        operands = tuple(dict.fromkeys(self.node_of(x) for x in given if id(x) not in unread))
        output = func(*args, **kwargs)
        op = func._schema.name.replace("::", ".")
        if op.startswith("aten.") and "empty" in op:
            output.zero_()  # nobody may read what it holds, but a fingerprint does
        seen = {id(x) for x in written}
        for x in written:
            self.tensors.hold(x, self.add(op, operands, x, where), written=True)
        for x in tree_leaves(output):
            if isinstance(x, torch.Tensor) and is_plain(x) and id(x) not in seen:
                self.tensors.hold(x, self.add(op, operands, x, where))
        return output

    def leaf(self, op: str, tensor: torch.Tensor, name: str = "") -> int:
        """A tensor that no operation made."""
        node = self.add(op, (), tensor, Where(None, None, False), name)
        self.tensors.hold(tensor, node)
        return node

    def add(self, op: str, operands: tuple[int, ...], tensor: torch.Tensor, where: Where, name: str = "") -> int:
        """One more node, with the numbers that the tensor has now."""
        remembered = fingerprint(numbers(tensor))
        self.nodes.append(Node(op, operands, tuple(tensor.shape), *where[:2], remembered, name, where.backward))
        return len(self.nodes) - 1

    def node_of(self, tensor: torch.Tensor) -> int:
        """The node that holds a tensor's numbers as they are now."""
        memory, held = self.tensors.memory(tensor), self.tensors.held(tensor)
        if held is None:
            if not memory.arrays:
                return self.leaf("constant", tensor)
            held = Held(next(iter(memory.arrays.values())).node, -1)  # a view that no operation made
        if held.writes == len(memory.writes):
            return held.node
        new = fingerprint(numbers(tensor))
        node = held.node
        if held.writes < 0 or not equal(new, self.nodes[node].fingerprint):
            writes = tuple(memory.writes[max(held.writes, 0) :])
            newest = self.nodes[max(writes, default=node)]
            operands = tuple(dict.fromkeys((node, *writes)))
            self.nodes.append(
                newest._replace(op="read", inputs=operands, shape=tuple(tensor.shape), fingerprint=new, name="")
            )
            node = len(self.nodes) - 1
        self.tensors.renew(tensor, node)
        return node


def writes_of(func: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], set[int]]:
    """The tensors that an operation writes, and the identities of those whose old numbers it does not read."""
    written, unread = list[torch.Tensor](), set[int]()
    fills = func._schema.name.split("::")[-1] in FILLS
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            tensors = [x for x in tree_leaves(named.get(argument.name)) if isinstance(x, torch.Tensor) and is_plain(x)]
            written += tensors
            unread |= {id(x) for x in tensors if fills or argument.is_out}
    return written, unread


def equal(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two arrays are the same, as far as is remembered."""
    return a.size == b.size and np.array_equal(a.sums, b.sums) and (a.order, a.axes) == (b.order, b.axes)
