"""Real models and ports of them: one call, no rules. A right port agrees, and a bug is named at its layer or later."""

import importlib
from contextlib import nullcontext
from unittest import mock

import pytest

import parity
from tests.parity.ports.bug import Bug

for package in ("transformers", "equinox", "haiku"):  # which ports are written in; the extra test brings them
    pytest.importorskip(package)

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


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_right_port_agrees(name):
    result = compared(name)
    assert result.verdict == "agrees", "\n".join([result.sentence, *result.notes])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [(name, 0) for name in SMALL])
def test_a_bug_in_a_small_port_is_found(name, number):
    assert not judge_bug(name, number)


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
