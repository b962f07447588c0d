"""`--profile FIRST:LAST`: a trace of these steps in the run's directory, which changes no number."""

import gzip
import json
import re
from pathlib import Path

import jax
import pytest

from tests.helpers.trust import FRAMEWORKS, arguments, assert_same_run, train


@pytest.fixture(autouse=True, scope="module")
def no_programs_of_other_tests():
    """JAX's profiler describes every compiled program that is alive, which may be thousands."""
    jax.clear_caches()


LINEAR = ("--steps", "6", "--log-every", "1", "--save-every", "2")


def run_linear(framework: str, run: Path, *flags: str) -> None:
    assert train(framework, [*arguments("linear", run, *LINEAR, *flags), "--out-dir", str(run)]) == 0


def traced_steps(run: Path) -> dict[str, list[int]]:
    """File -> the steps that are named in a trace of either framework."""
    found = {}
    for file in sorted((run / "profile").rglob("*.trace.json.gz")):
        with gzip.open(file) as content:
            events = json.load(content)["traceEvents"]
        steps = [
            int(event["args"]["step_num"]) if event["name"] == "step" else int(event["name"].split()[1])
            for event in events
            if re.fullmatch(r"step( \d+)?", event.get("name", "")) and event["ph"] == "X"
        ]
        assert len(events) > 10 * len(steps), "only the steps' names are in the trace"
        found[str(file)] = sorted(steps)
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_steps_asked_for_are_traced_and_no_number_changes(framework, tmp_path, capsys):
    run_linear(framework, tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    run = tmp_path / "run"
    capsys.readouterr()
    run_linear(framework, run, "--profile", "2:4")
    [(file, steps)] = traced_steps(run).items()
    assert steps == [2, 3, 4]
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("profile: ")]
    assert "https://ui.perfetto.dev" in said
    assert Path(file).match(said.split()[2].rstrip(",")), said
    assert_same_run(framework, run, tmp_path / "plain")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_trace_ends_with_the_run_and_is_not_repeated_by_a_resume(framework, tmp_path, capsys):
    run = tmp_path / "run"
    run_linear(framework, run, "--profile", "6:6")
    assert list(traced_steps(run).values()) == [[6]]
    cut(run, "6")
    capsys.readouterr()
    assert train(framework, ["linear", "--resume", "--out-dir", str(run)]) == 0
    assert "profile: " not in capsys.readouterr().out


def cut(run: Path, step: str) -> None:
    """Take the run's last checkpoint away."""
    for path in sorted((run / "checkpoints" / step).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / "checkpoints" / step).rmdir()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_resumed_run_profiles_what_is_left_of_the_steps(framework, tmp_path, capsys):
    run = tmp_path / "run"
    run_linear(framework, run)
    cut(run, "6")
    resume = ["linear", "--resume", "--out-dir", str(run), "--profile"]
    capsys.readouterr()
    assert train(framework, [*resume, "2:4"]) == 0
    assert "profile: steps 2 to 4 were taken before; --profile later ones" in capsys.readouterr().out
    assert not (run / "profile").exists()
    cut(run, "6")
    assert train(framework, [*resume, "3:5"]) == 0
    assert list(traced_steps(run).values()) == [[5]]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_profile_that_cannot_be_written_does_not_end_the_run(framework, tmp_path, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no space left\non the disk")

    stop = jax.profiler.stop_trace
    name = {"jax": "jax.profiler.stop_trace", "torch": "torch.profiler.profile.export_chrome_trace"}[framework]
    monkeypatch.setattr(name, fail)
    run_linear(framework, tmp_path / "run", "--profile", "2:2")
    if framework == "jax":
        stop()
    assert "profile: it could not be written: no space left\n" in capsys.readouterr().out
