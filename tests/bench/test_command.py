"""`python -m bench`: bad input is refused in one line, and a tiny run measures everything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.options import BenchOptions
from twinstep.errors import run_command


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--only", "speed"], "--only speed: there is no such measurement; choose from step, classifier,"),
        (["--only", "step,"], "--only : there is no such measurement"),
        (["--pairs", "0"], "--pairs"),
        (["--minutes", "0"], "--minutes"),
        (["--platform", "cuda"], "--platform cuda: JAX runs on cpu, and torch sees none; both need the GPU"),
        (
            ["--platform", "cuda", "--only", "growth"],
            "--only growth: there is no such measurement; choose from step,",
        ),
        (["--pairs", "many"], "many"),
        (["--no-such-flag"], "no-such-flag"),
        (["--json", "no/such/folder/bench.json"], "--json no/such/folder/bench.json: its folder does not exist"),
        (["--upstream", "no-checkout"], "--upstream no-checkout has no nanochat/gpt.py"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_measured(argv, says, capsys):
    assert run_command(main, argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err


def test_five_rounds_by_default_and_one_in_a_tiny_run():
    assert BenchOptions().rounds == 5
    assert BenchOptions(tiny=True).rounds == 1
    assert BenchOptions(tiny=True, pairs=3).rounds == 3


@pytest.mark.slow
def test_a_tiny_run_measures_everything(tmp_path):
    path = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--tiny", "--json", str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["command"] == f"python -m bench --tiny --json {path}"
    works = {row["work"]: row for row in found["rows"]}
    for begin in ("gpt step", "linear classifier", "peak memory", "start to first step", "decoding", "growth, slope"):
        assert any(work.startswith(begin) for work in works), begin
    assert {row["side"] for row in found["rows"]} == {"jax", "jax, again", "torch"}
    for row in found["rows"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["work"] in done.stdout
        assert (row["ratio"] is None) == (row["side"] == "jax" or row["work"].startswith("growth"))
    # Both sides decode the same text from the same weights, so that they do the same work.
    assert all(row["extra"]["same_tokens"] == 1 for row in found["rows"] if row["work"].startswith("decoding"))
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
