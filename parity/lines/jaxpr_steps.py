"""What a jaxpr computes, step by step: calls are walked into, scans and branches keep their functions as blocks."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from parity.jax_internals import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Scan,
    called_function,
    frames_of,
    is_backward,
    is_forward_again,
    scan_of,
)
from parity.lines.line import Line
from parity.lines.whose import whose

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)


class Constant(NamedTuple):
    """A number or an array of the code."""

    value: Any


Operand = int | Constant  # what an earlier step gave, by its number within the block; or a constant


class Place(NamedTuple):
    """Where an equation stands in the code."""

    line: Line | None
    library: Line | None
    backward: bool


class Step(NamedTuple):
    """One equation, evaluated as it is."""

    eqn: JaxprEqn
    inputs: list[Operand]
    outputs: list[int]
    place: Place


class Loop(NamedTuple):
    """A scan."""

    scan: Scan
    body: "Block"
    inputs: list[Operand]
    outputs: list[int]
    place: Place


class Choice(NamedTuple):
    """One of several functions of the same operands; the first input is its index."""

    branches: list["Block"]
    inputs: list[Operand]
    outputs: list[int]
    place: Place


class Block(NamedTuple):
    """A function: its inputs are numbered from 0, and every step's outputs on from there."""

    n_inputs: int
    steps: list[Step | Loop | Choice]
    outputs: list[Operand]

    def size(self) -> int:
        """How many values it computes."""
        return sum(size(step) for step in self.steps)


def size(step: Step | Loop | Choice) -> int:
    """How many values a step computes."""
    if isinstance(step, Loop):
        return step.scan.length * step.body.size()
    if isinstance(step, Choice):
        return sum(block.size() for block in step.branches)
    return len(step.outputs)


def block_of(function: ClosedJaxpr, around: Place) -> Block:
    """The steps of a jaxpr; equations that have no line of their own are at `around`."""
    count = itertools.count()
    n_inputs = len(function.jaxpr.invars)
    inputs = [next(count) for _ in range(n_inputs)]
    steps: list[Step | Loop | Choice] = []
    outputs = walk(function.jaxpr, function.consts, inputs, around, steps, count)
    return Block(n_inputs, steps, outputs)


def walk(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Operand],
    around: Place,
    steps: list[Step | Loop | Choice],
    count: Iterator[int],
) -> list[Operand]:
    """Appends a jaxpr's steps, and returns its outputs."""
    known: dict[Any, Operand] = {}
    known.update(zip(jaxpr.constvars, map(Constant, consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom, known) for atom in eqn.invars]
        place = place_of(eqn, around)
        outputs: Sequence[Operand]
        if eqn.primitive.name in CALLS and (inner := called_function(eqn)) is not None:
            outputs = walk(inner.jaxpr, inner.consts, operands, place, steps, count)
        else:
            numbers = [next(count) for _ in eqn.outvars]
            steps.append(step_of(eqn, operands, numbers, place))
            outputs = numbers
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom, known) for atom in jaxpr.outvars]


def step_of(eqn: JaxprEqn, inputs: list[Operand], outputs: list[int], place: Place) -> Step | Loop | Choice:
    """An equation that is no call."""
    if (scan := scan_of(eqn)) is not None:
        return Loop(scan, block_of(scan.function, place), inputs, outputs, place)
    if eqn.primitive.name == "cond":
        return Choice([block_of(branch, place) for branch in eqn.params["branches"]], inputs, outputs, place)
    return Step(eqn, inputs, outputs, place)


def read(atom: Any, known: Mapping[Any, Operand]) -> Operand:
    """An equation's operand."""
    if isinstance(atom, Literal):
        aval: Any = atom.aval
        return Constant(np.asarray(atom.val, aval.dtype))
    return known[atom]


def place_of(eqn: JaxprEqn, around: Place) -> Place:
    """The innermost line of the user's, and a framework's where one lies deeper; else that of the equation around."""
    backward = not is_forward_again(eqn) and (around.backward or is_backward(eqn))
    library = None
    for frame in frames_of(eqn):
        kind = whose(frame.file)
        if kind == "user":
            return Place(frame, library, backward)
        if kind == "framework" and library is None:
            library = frame
    if around.line is not None and whose(around.line.file) == "user":
        return Place(around.line, library or around.library, backward)
    if library is not None:
        return Place(library, None, backward)
    return Place(around.line, around.library, backward)
