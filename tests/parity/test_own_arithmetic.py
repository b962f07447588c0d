"""The configurations of `parity check all` run every line of the arithmetic, and the hints name what would."""

import ast
import json
from fnmatch import fnmatch

import pytest

from parity import own_arithmetic
from parity.check_all import check_all, run_in_none
from parity.check_configs import split_devices, subject, with_flags
from parity.exercised import functions
from parity.own_arithmetic import BESIDE, CONFIGURATIONS, ELSEWHERE, FSDP_WHOLE, SIGMOID, WHAT_RUNS
from parity.result import NotRun
from tests.helpers.report_cases import result

FUNCTIONS = {
    (path.relative_to(own_arithmetic.ROOT).as_posix(), name)
    for path in own_arithmetic.files()
    for name in functions(ast.parse(path.read_text()))
}


@pytest.mark.parametrize(("file", "name", "_"), [*ELSEWHERE, *WHAT_RUNS])
def test_every_pattern_is_of_a_function_that_is_there(file, name, _):
    assert [one for one in FUNCTIONS if fnmatch(one[0], file) and fnmatch(one[1], name)]


def test_what_lies_beside_the_arithmetic_is_there():
    assert not {(file, name) for file, names in BESIDE for name in names} - FUNCTIONS


@pytest.mark.parametrize("words", CONFIGURATIONS)
def test_every_configuration_is_one(words):
    (model, *flags), _ = split_devices(words.split())
    assert with_flags(subject(model), flags).model_name == model


def test_a_hint_names_one_of_the_configurations_or_what_the_lines_need():
    for _, _, words in WHAT_RUNS:
        assert any(one.startswith(words) for one in CONFIGURATIONS)
    assert own_arithmetic.what_runs(NotRun("fsdp.py", "gather", [1], True)) == (
        "python -m parity check gpt --parallel fsdp --devices 4 --batch-size 8"
    )
    assert own_arithmetic.what_runs(NotRun("models/splash.py", "splash_attention", [1], True)) == "needs a TPU"


def test_what_ran_in_none_is_what_is_missing_from_all():
    first = result([], not_run=[NotRun("a.py", "f", [1, 2], True), NotRun("a.py", "g", [7], True)])
    second = result([], not_run=[NotRun("a.py", "f", [2], False)])
    assert run_in_none([first, second]) == [NotRun("a.py", "f", [2], False)]


@pytest.mark.slow
def test_two_of_them_run_both_kinds_of_loss(tmp_path):
    two = FSDP_WHOLE, SIGMOID
    check_all(tmp_path, [f"{words} --steps 3" for words in two])
    summary = json.loads((tmp_path / "all.json").read_text())
    assert [one["verdict"] for one in summary["configurations"]] == ["agrees", "agrees"]
    left = {one["file"] for one in summary["not_run"] if not one["needs"]}
    assert "models/gpt.py" in left
    assert not {"losses.py", "models/linear.py"} & left


@pytest.mark.long
def test_all_of_them_together_run_every_line(tmp_path):
    assert check_all(tmp_path) == 0
    assert all(one["needs"] for one in json.loads((tmp_path / "all.json").read_text())["not_run"])
