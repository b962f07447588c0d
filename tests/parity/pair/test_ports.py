"""Real models and ports of them: one call, no rules. A right port agrees, and a bug is named at its layer or later."""

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest

import parity
from parity.lines.line import Line
from tests.parity.ports.bug import Bug

for package in ("transformers", "equinox", "haiku"):  # which ports are written in; the extra test brings them
    pytest.importorskip(package)

from tests.parity.ports.truth import inside_lines, torch_lines, true_lines  # noqa: E402, it imports transformers

NAMES = ("bert", "gpt2", "vit", "t5", "lstm", "llama", "resnet", "mixtral", "mamba", "esm", "whisper")
SMALL = ("llama", "lstm")


def port(name: str):
    return importlib.import_module(f"tests.parity.ports.{name}")


def compared(name: str, seed: int = 0, bug: Bug | None = None):
    pair = port(name)
    module, inputs = pair.torch_side(seed)
    with mock.patch.object(pair, bug.name, bug.wrong) if bug else nullcontext():
        made = pair.jax_side(module.state_dict())
        function, params = made[:2]
        buffers = {"buffers": made[2]} if len(made) > 2 else {}
        return parity.compare(module, function, params, inputs, **pair.OPTIONS, **buffers)


def cases(names):
    return [(name, number) for name in names for number in range(len(port(name).BUGS))]


def judge_bug(name: str, number: int) -> str:
    """What is wrong with the answer, or ""."""
    bug = port(name).BUGS[number]
    result = compared(name, bug=bug)
    return "" if result.verdict == "diverges" else f"{bug.what}: {result.sentence}"


def to_the_line(name: str, bug: Bug) -> tuple[bool, bool]:
    """Whether JAX's line and torch's are named, at most one above or below."""
    pair, lines = port(name), compared(name, bug=bug).lines
    if lines is None:
        return False, False
    ours = [(pair.__file__, line, line) for line in [*true_lines(pair, bug), *inside_lines(bug)]]
    return near(lines.jax, ours), near(lines.torch, torch_lines(bug))


def near(line: Line | None, places: Sequence[tuple[Path | str, int, int]]) -> bool:
    return line is not None and any(
        Path(line.file) == Path(file) and line.first - 1 <= last and line.last + 1 >= first
        for file, first, last in places
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_right_port_agrees(name):
    result = compared(name)
    assert result.verdict == "agrees", "\n".join([result.sentence, *result.notes])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("llama", 1), ("lstm", 3), ("llama", 8)])
def test_a_bug_in_a_small_port_is_found_to_the_line(name, number):
    assert to_the_line(name, port(name).BUGS[number])[1]


@pytest.mark.long
def test_most_bugs_are_found_to_the_line():
    """Of those that a pass shows; `docs/runs/lines.json` has all answers."""
    bugs = [(name, bug) for name in NAMES for bug in port(name).BUGS if bug.stage in ("activations", "gradients")]
    found = [to_the_line(name, bug) for name, bug in bugs]
    in_jax, in_torch = (sum(side) / len(bugs) for side in zip(*found, strict=True))
    assert in_jax >= 0.8, found
    assert in_torch >= 0.6, found


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_every_right_port_agrees(name, seed):
    result = compared(name, seed)
    assert result.verdict == "agrees", "\n".join([result.sentence, *result.notes])


@pytest.mark.long
@pytest.mark.parametrize(("name", "number"), cases(NAMES))
def test_every_bug_is_found(name, number):
    assert not judge_bug(name, number)
