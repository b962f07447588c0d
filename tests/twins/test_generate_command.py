"""The commands `generate` of both rooms: what they print, and what they refuse in one line."""

from pathlib import Path

import pytest

import jax_impl.generate
import torch_ref.generate
from tests.helpers.snapshots import CONFIGS, make_snapshot, written
from tests.helpers.trust import FRAMEWORKS
from twinstep.errors import run_command

MAIN = {"jax": jax_impl.generate.main, "torch": torch_ref.generate.main}

BAD_FLAGS = [
    ("--max-tokens", "0"),
    ("--max-tokens", "2000000"),
    ("--max-tokens", "many"),
    ("--temperature", "-0.1"),
    ("--temperature", "nan"),
    ("--temperature", "inf"),
    ("--top-k", "0"),
    ("--top-p", "0"),
    ("--top-p", "1.01"),
    ("--seed", "-1"),
    ("--seed", "4294967296"),
    ("--samples", "0"),
    ("--step", "-1"),
    ("--step", "99"),
    ("--stop", ""),
    ("--prompt", "\udcff"),
    ("--no-such-flag", "1"),
]


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def place(framework, tmp_path_factory) -> Path:
    """A run of gpt and one of linear."""
    place = tmp_path_factory.mktemp("runs")
    for model in ("gpt", "linear"):
        written(place / model, make_snapshot(CONFIGS[model], 7), framework)
    return place


def printed(framework, capfdbinary, *argv: str) -> bytes:
    assert run_command(MAIN[framework], list(argv)) == 0
    out, err = capfdbinary.readouterr()
    assert err == b""
    return out


def refused(framework, capsys, *argv: str) -> str:
    """The one line that says why."""
    capsys.readouterr()
    assert run_command(MAIN[framework], list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_several_samples_are_printed_one_after_another(framework, place, capfdbinary):
    argv = ["--run", str(place / "gpt"), "--prompt", "x", "--max-tokens", "8", "--seed", "5"]
    one = printed(framework, capfdbinary, *argv)
    two = printed(framework, capfdbinary, *argv, "--samples", "2")
    assert two.startswith(one + b"\nx")


@pytest.mark.parametrize(("flag", "value"), BAD_FLAGS)
def test_a_bad_flag_ends_in_one_line_that_names_it(framework, place, capsys, flag, value):
    err = refused(framework, capsys, "--run", str(place / "gpt"), flag, value)
    assert flag.removeprefix("--") in err


def test_a_missing_run_ends_in_one_line(framework, tmp_path, capsys):
    for argv in ([], ["--run", str(tmp_path / "none")], ["--run", str(tmp_path)]):
        assert "run" in refused(framework, capsys, *argv)


def test_a_run_of_a_classifier_is_refused_by_name(framework, place, capsys):
    assert "a run of linear" in refused(framework, capsys, "--run", str(place / "linear"))
