"""The row that tools.versions writes and the table made of rows. No training."""

import json
import re
from pathlib import Path

import pytest

from docs.runs import versions as table
from tools import installed, versions
from tools.calls import StepError
from twinstep.errors import run_command

ROOT = Path(__file__).parents[1]
PARTS = {
    "date": "2026-11-27",
    "gpu": None,
    "versions": {**dict.fromkeys(table.COLUMNS, "1.2"), "python": "3.13.0", "jax devices": ["cpu"]},
    "train": {"jax": {"gpt": 1.0}, "torch": {"gpt": 1.0}},
    "generate": {"jax": 14, "torch": 14},
    "parity_check": {"gpt": "agrees", "linear": "agrees", "seconds": 9.0},
    "tests": {"paths": ["tests"], "passed": 1200, "failed": 0, "error": 0, "skipped": 2, "seconds": 9.0},
    "warnings": [],
}


def with_part(name, **change):
    return {**PARTS, name: {**PARTS[name], **change}}


def test_a_row_says_what_ran_on_what():
    found = dict(zip(table.HEAD, table.cells(PARTS), strict=True))
    assert (found["Python"], found["jax"], found["on"], found["warnings"]) == ("3.13.0", "1.2", "CPU", "0")
    assert found["tests"] == "all quick ones: 1,200 passed, 2 skipped"
    assert found["train, generate"] == "jax, torch"
    assert found["`parity check`"] == "gpt, linear: agrees"


def test_a_row_without_torch_says_so():
    row = with_part("versions", torch=None) | {
        "train": {"jax": {}},
        "generate": {"jax": 1},
        "parity_check": {"seconds": 0.0},
    }
    found = dict(zip(table.HEAD, table.cells(row), strict=True))
    assert (found["torch"], found["train, generate"], found["`parity check`"]) == ("none", "jax", "needs torch")


def test_a_row_hides_no_failure():
    assert table.tests(with_part("tests", paths=["tests/a.py"], failed=3)).endswith("1,200 passed, 3 failed, 2 skipped")
    assert table.both(with_part("train", not_made="no time left")) == "no time left"
    assert table.checks({"gpt": "agrees", "mlp": "diverges"}) == "gpt: agrees; mlp: diverges"
    assert table.checks({"not_made": "out of time"}) == "out of time"
    assert table.tests({}) == "not run"
    assert versions.fine(PARTS)
    assert not versions.fine(with_part("tests", failed=1))
    assert not versions.fine(with_part("tests", error=1))
    assert not versions.fine(with_part("train", not_made="no time left"))
    assert not versions.fine(with_part("parity_check", mlp="diverges"))


def test_rows_are_in_the_order_of_their_versions(tmp_path, monkeypatch):
    for name, python, jax in (("a", "3.13.0", "0.12.0.1"), ("b", "3.11.7", "0.10.2"), ("c", "3.12.1", "0.9.1")):
        (tmp_path / f"{name}.json").write_text(json.dumps(with_part("versions", python=python, jax=jax, torch=None)))
    monkeypatch.setattr(table, "STACKS", tmp_path)
    assert [row["versions"]["python"] for row in table.rows()] == ["3.11.7", "3.12.1", "3.13.0"]


def test_the_oldest_and_the_newest_jax_of_the_constraints_have_a_row():
    pinned = {re.search(r"^jax==(.+)$", path.read_text(), re.MULTILINE)[1] for path in (ROOT / "constraints").iterdir()}
    assert pinned <= {row["versions"]["jax"] for row in table.rows()}


def test_a_step_that_fails_is_an_entry_with_its_error():
    class NoCalls:
        entries = None

    def broken(calls, figures):
        figures["first"] = 1
        raise StepError("no time left")

    step = versions.step_of_row(NoCalls(), "broken", broken)
    assert (step["first"], step["not_made"]) == (1, "no time left")


def test_what_is_installed_is_told_without_torch(monkeypatch):
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    found = installed.installed()
    assert (found["torch"], found["jax devices"]) == (None, ["cpu"])
    assert found["orbax-checkpoint"]


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # so no nvidia-smi
    out = ["--out", str(tmp_path / "x.json")]
    bad = (["--out", "x.txt"], [*out, "--minutes", "0"], [*out, "--only", "tests"], [*out, "--platform", "cuda"])
    for argv in bad:
        assert run_command(versions.main, argv) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("printed", "count"), [("a.py:3: DeprecationWarning: old\n  old()", 1), ("no warning: fine", 0)]
)
def test_warnings_are_found_in_what_was_printed(printed, count):
    assert len(versions.WARNING.findall(printed)) == count
