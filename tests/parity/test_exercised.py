"""What a check did not run is listed, function by function and line by line."""

import sys
from pathlib import Path

import pytest

from parity import own_arithmetic
from parity.check import check_watched
from parity.check_configs import subject, with_flags
from parity.exercised import functions, not_run, watch_lines
from parity.request import Request
from parity.result import NotRun

MODULE = '''"""A module."""


def taken(x):
    """Says what x is."""
    if x > 0:
        return "more"
    if x < -10:
        raise ValueError(x)
    return "less"


def left_out(x):
    return x


class Thing:
    def method(self):
        def inner():
            return 1

        return inner()
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "watched_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import watched_module

    yield watched_module
    del sys.modules["watched_module"]


def listed(module, run) -> list[NotRun]:
    path = Path(module.__file__)
    with watch_lines([path]) as lines:
        run()
    return not_run(lines, path.parent)


def test_functions_and_lines_that_did_not_run_are_listed_but_not_refusals(module):
    assert listed(module, lambda: module.taken(1)) == [
        NotRun("watched_module.py", "taken", [8, 10], False),
        NotRun("watched_module.py", "left_out", [14], True),
        NotRun("watched_module.py", "Thing.method", [19, 22], True),
        NotRun("watched_module.py", "Thing.method.inner", [20], True),
    ]


def test_what_ran_wholly_is_not_listed(module):
    def run():
        module.taken(1), module.taken(-1), module.left_out(1), module.Thing().method()

    assert listed(module, run) == []


def test_nothing_is_watched_beside_a_debugger(module):
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        with watch_lines([Path(module.__file__)]) as lines:
            pass
    finally:
        sys.settrace(before)
    assert not lines.statements


def test_every_statement_of_a_function_belongs_to_the_innermost_one():
    import ast

    found = functions(ast.parse(MODULE))
    assert found["taken"] == {6, 7, 8, 9, 10}
    assert found["Thing.method"] == {19, 22}


@pytest.mark.slow
def test_a_check_names_what_its_flags_left_out_and_the_flags_that_would_not():
    def of(*flags):
        result = check_watched(Request(with_flags(subject("linear"), ["--steps", "3", *flags])))
        return {(x.file, x.function): x for x in result.not_run}

    softmax, sigmoid = of(), of("--dataset", "breast_cancer", "--head", "sigmoid")
    binary = ("losses.py", "sigmoid_binary_cross_entropy")
    assert softmax[binary].whole
    assert binary not in sigmoid
    assert ("losses.py", "loss_sums") in softmax
    assert not softmax["muon.py", "orthogonalize"].whole
    assert softmax["head_loss.py", "chunked_loss"].whole


def test_the_files_of_the_arithmetic_are_there():
    names = {path.relative_to(own_arithmetic.ROOT).as_posix() for path in own_arithmetic.files()}
    assert {"step.py", "muon.py", "head_loss.py", "decoding.py", "models/gpt.py", "models/splash.py"} <= names
    assert not {"train.py", "plot.py", "aot/hlo.py"} & names
