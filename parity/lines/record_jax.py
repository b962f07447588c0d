"""The operations of a JAX function with their values and lines: the equations of its jaxpr."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parity.jax_internals import traced_with_lines
from parity.lines.fingerprint import fingerprint
from parity.lines.graph import Graph, Node
from parity.lines.jaxpr_steps import Block, Choice, Constant, Loop, Operand, Place, Step, block_of
from parity.lines.jaxpr_values import is_view, pieces, values_of, view

NOWHERE = Place(None, None, False)


def record_jax(
    function: Callable[..., Mapping[str, jax.Array]], leaves: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Graph:
    """What `function(leaves, inputs)` computes on the way to the arrays that it returns by name.

    Each equation is a node, those of a scan once an iteration, with a "slice" for every row that it reads and a
    "stack" for what it collects. A scan that gives more than `jaxpr_values.MOST` values has its first iterations and
    its last recorded, and the middle as one node "scan" an output. Of a `cond` all branches are recorded; its output
    depends on the one that was taken, and on the index. What JAX does not show from within (a `while`, a kernel, a
    callback, the drawing of random bits) is one node an output. Single numbers of the code are no nodes.

    It is traced anew, whatever is traced already. The caller chooses x64.
    """
    with traced_with_lines():
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(leaves, inputs)
    block = block_of(closed, NOWHERE)
    names = [
        (op, jax.tree_util.keystr(path, simple=True, separator="."))
        for op, tree in (("parameter", leaves), ("input", inputs))
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    arrays = [jnp.asarray(x) for x in jax.tree.leaves((leaves, inputs))]
    saved = values_of(block, arrays)

    recorder = Recorder()
    given = [recorder.add(op, (), as_numpy(x), NOWHERE, name) for (op, name), x in zip(names, arrays, strict=True)]
    results = [recorder.node(result) for result in recorder.block(block, given, saved)]
    return Graph(recorder.nodes, jax.tree.unflatten(jax.tree.structure(shapes), results))


def as_numpy(x: jax.Array) -> np.ndarray:
    """An array on the host; a random key as its bits."""
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


class Known(NamedTuple):
    """A value, and its node unless it depends on nothing."""

    value: np.ndarray
    node: int | None


class Recorder:
    """Follows the steps of a block once more, with the values that they had."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[int, Known] = {}

    def add(self, op: str, inputs: Iterable[Known], value: np.ndarray, place: Place, name: str = "") -> Known:
        """A new node."""
        operands = tuple(known.node for known in inputs if known.node is not None)
        line, library, backward = place
        self.nodes.append(Node(op, operands, value.shape, line, library, fingerprint(value), name, backward))
        return Known(value, len(self.nodes) - 1)

    def node(self, known: Known) -> int:
        """The number of a value's node."""
        return self.add("constant", (), known.value, NOWHERE).node or 0 if known.node is None else known.node

    def constant(self, value: Any) -> Known:
        """A constant of the code: an array is one node, however often it is read."""
        if not np.ndim(value):
            return Known(np.asarray(value), None)
        if id(value) not in self.constants:
            self.constants[id(value)] = self.add("constant", (), as_numpy(value), NOWHERE)
        return self.constants[id(value)]

    def block(self, block: Block, inputs: Sequence[Known], saved: Sequence[Any]) -> list[Known]:
        """The outputs of a block. saved: what its steps computed."""
        values = dict(enumerate(inputs))

        def read(operand: Operand) -> Known:
            return self.constant(operand.value) if isinstance(operand, Constant) else values[operand]

        for step, kept in zip(block.steps, saved, strict=True):
            given = [read(operand) for operand in step.inputs]
            if isinstance(step, Loop):
                outputs = self.loop(step, given, *kept)
            elif isinstance(step, Choice):
                outputs = self.choice(step, given, kept)
            else:
                outputs = self.step(step, given, kept)
            values.update(zip(step.outputs, outputs, strict=True))
        return [read(operand) for operand in block.outputs]

    def step(self, step: Step, inputs: Sequence[Known], kept: Sequence[np.ndarray]) -> list[Known]:
        """An equation's nodes."""
        found = [view(step, inputs[0].value)] if is_view(step) else kept
        return [self.add(step.eqn.primitive.name, inputs, value, step.place) for value in found]

    def loop(self, loop: Loop, inputs: Sequence[Known], stacked: Sequence[np.ndarray], kept: Sequence[Any]) -> list:
        """A scan's outputs, with the nodes of its iterations."""
        n_consts, n_carry = loop.scan.n_consts, loop.scan.n_carry
        consts, carry, xs = inputs[:n_consts], list(inputs[n_consts : n_consts + n_carry]), inputs[n_consts + n_carry :]
        columns: list[list[Known]] = [[] for _ in stacked]
        for piece, saved in zip(pieces(loop), kept, strict=True):
            rows = piece.rows(loop)
            if not piece.recorded:
                before = [*consts, *carry, *xs]
                carry = [self.add("scan", before, value, loop.place) for value in saved]
                for column, values in zip(columns, stacked, strict=True):
                    column.append(self.add("scan", before, values[rows.start : rows.stop], loop.place))
                continue
            for row in reversed(rows) if loop.scan.reverse else rows:
                sliced = [self.slice(x, row, loop.place) for x in xs]
                values = jax.tree.map(lambda x, i=row - rows.start: x[i, ...], saved)
                outputs = self.block(loop.body, [*consts, *carry, *sliced], values)
                carry = outputs[:n_carry]
                for column, output in zip(columns, outputs[n_carry:], strict=True):
                    column.append(output)
        stacks = [self.add("stack", *both, loop.place) for both in zip(columns, stacked, strict=True)]
        return [*carry, *stacks]

    def slice(self, x: Known, row: int, place: Place) -> Known:
        """One row of a stacked array."""
        value = x.value[row, ...]
        return Known(value, None) if x.node is None else self.add("slice", [x], value, place)

    def choice(self, choice: Choice, inputs: Sequence[Known], kept: Sequence[Any]) -> list[Known]:
        """The outputs of the branch that was taken."""
        index, *operands = inputs
        branches = [self.block(*both) for both in zip(choice.branches, [operands] * len(kept), kept, strict=True)]
        taken = branches[int(np.clip(index.value, 0, len(branches) - 1))]
        return [self.add("cond", [index, output], output.value, choice.place) for output in taken]
