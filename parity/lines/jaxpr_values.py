"""The values of all steps of a jaxpr, in one jitted pass that unrolls no scan."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from parity.jax_internals import bind
from parity.lines.jaxpr_steps import Block, Choice, Constant, Loop, Operand, Step

MOST = 20_000  # values that a scan may give before only its first iterations and the last are recorded
# A program that runs once: what XLA saves at run time it would lose while it compiles.
OPTIONS: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}


class Piece(NamedTuple):
    """Iterations of a scan, in the order of their execution: from start up to stop."""

    start: int
    stop: int
    recorded: bool

    def rows(self, loop: Loop) -> range:
        """Their rows in the scan's stacked arrays, ascending."""
        length = loop.scan.length
        return range(length - self.stop, length - self.start) if loop.scan.reverse else range(self.start, self.stop)


def pieces(loop: Loop) -> list[Piece]:
    """A scan as it is recorded: whole, or with its middle as one."""
    length = loop.scan.length
    first = max(1, MOST // max(1, loop.body.size()) - 1)
    if length <= first + 2:
        return [Piece(0, length, True)]
    return [Piece(0, first, True), Piece(first, length - 1, False), Piece(length - 1, length, True)]


def values_of(block: Block, inputs: Sequence[Any]) -> list[Any]:
    """What each step of a block computed, as `evaluate` describes it, in NumPy."""
    arrays = constants_of(block)

    def run(inputs: list[Any], constants: list[Any]) -> list[Any]:
        return evaluate(block, inputs, dict(zip(arrays, constants, strict=True)))[1]

    args = list(inputs), list(arrays.values())
    compiled = jax.jit(run).lower(*args).compile(compiler_options=OPTIONS)
    return jax.tree.map(np.asarray, compiled(*args))


def constants_of(block: Block) -> dict[int, Any]:
    """The arrays among the constants, by identity: they become arguments, for XLA takes long over large constants."""
    operands = [*block.outputs, *(operand for step in block.steps for operand in step.inputs)]
    found = {id(x.value): x.value for x in operands if isinstance(x, Constant) and np.ndim(x.value)}
    for step in block.steps:
        inner = [step.body] if isinstance(step, Loop) else step.branches if isinstance(step, Choice) else []
        for part in inner:
            found |= constants_of(part)
    return found


def evaluate(block: Block, inputs: Sequence[Any], constants: Mapping[int, Any]) -> tuple[list[Any], list[Any]]:
    """A block's outputs, and what each of its steps computed.

    That is for an equation a list of its outputs, empty where they are views of its operand; for a scan its stacked
    outputs, and for each piece what the steps of its function computed (stacked), or its carry where it is not
    recorded; for a choice what the steps of each branch computed.
    """
    values = dict(enumerate(inputs))
    saved: list[Any] = []

    def read(operand: Operand) -> Any:
        if isinstance(operand, Constant):
            return constants.get(id(operand.value), operand.value)
        return values[operand]

    for step in block.steps:
        given = [read(operand) for operand in step.inputs]
        if isinstance(step, Loop):
            outputs, kept = run_loop(step, given, constants)
        elif isinstance(step, Choice):
            outputs, kept = run_choice(step, given, constants)
        else:
            outputs = bind(step.eqn, given)
            kept = [] if is_view(step) else plain(outputs)
        values.update(zip(step.outputs, outputs, strict=True))
        saved.append(kept)
    return [read(operand) for operand in block.outputs], saved


def run_loop(loop: Loop, inputs: Sequence[Any], constants: Mapping[int, Any]) -> tuple[list[Any], Any]:
    """A scan's outputs, and what is kept of it."""
    scan = loop.scan
    given, carry = list(inputs[: scan.n_consts]), list(inputs[scan.n_consts : scan.n_consts + scan.n_carry])
    stacked = inputs[scan.n_consts + scan.n_carry :]

    def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], Any]:
        outputs, saved = evaluate(loop.body, [*given, *carry, *row], constants)
        return outputs[: scan.n_carry], (outputs[scan.n_carry :], saved)

    def body_only(carry: list[Any], row: list[Any]) -> tuple[list[Any], Any]:
        carry, (outputs, _) = body(carry, row)
        return carry, (outputs, [])

    parts, kept = [], []
    for piece in pieces(loop):
        rows = piece.rows(loop)
        xs = [x[rows.start : rows.stop] for x in stacked]
        function = body if piece.recorded else body_only
        carry, (outputs, saved) = jax.lax.scan(function, carry, xs, length=len(rows), reverse=scan.reverse)
        parts.append(outputs)
        kept.append(saved if piece.recorded else plain(carry))
    if scan.reverse:
        parts.reverse()
    columns = [column[0] if len(column) == 1 else jnp.concatenate(column) for column in zip(*parts, strict=True)]
    return [*carry, *columns], (plain(columns), kept)


def run_choice(choice: Choice, inputs: Sequence[Any], constants: Mapping[int, Any]) -> tuple[list[Any], Any]:
    """All branches' values, for which is taken is not known yet; the outputs are the right one's."""
    index, *operands = inputs
    found = [evaluate(branch, operands, constants) for branch in choice.branches]
    index = jnp.clip(index, 0, len(found) - 1)
    outputs = [jax.lax.select_n(index, *cases) for cases in zip(*(outputs for outputs, _ in found), strict=True)]
    return outputs, [saved for _, saved in found]


def plain(values: Sequence[Any]) -> list[Any]:
    """Arrays that NumPy knows: random keys as their bits, no tangents of integers."""
    return [
        jax.random.key_data(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else jnp.zeros(x.shape, bool)
        if x.dtype == jax.dtypes.float0
        else x
        for x in values
    ]


def is_view(step: Step) -> bool:
    """Whether NumPy gives an equation's value without computing anything."""
    eqn = step.eqn
    if len(eqn.invars) != 1 or len(eqn.outvars) != 1:
        return False
    before: Any = eqn.invars[0].aval
    after: Any = eqn.outvars[0].aval
    if jnp.issubdtype(after.dtype, jax.dtypes.extended):
        return False
    return eqn.primitive.name in VIEWS or (eqn.primitive.name == "convert_element_type" and before.dtype == after.dtype)


VIEWS = ("transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "copy", "copy_p", "name")


def view(step: Step, x: np.ndarray) -> np.ndarray:
    """The value of an equation that is a view of its operand."""
    params, after = step.eqn.params, step.eqn.outvars[0].aval
    shape = cast(Any, after).shape
    if step.eqn.primitive.name == "transpose":
        return x.transpose(params["permutation"])
    if step.eqn.primitive.name == "broadcast_in_dim":
        kept = dict(zip(params["broadcast_dimensions"], x.shape, strict=True))
        return np.broadcast_to(x.reshape([kept.get(axis, 1) for axis in range(len(shape))]), shape)
    return x.reshape(shape)
