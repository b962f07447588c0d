"""What tools.on_gpu reads out of runs and logs, and what it refuses. No GPU and no training."""

import json
import time

import pytest

from tools import on_gpu
from tools.calls import Calls, StepError, gpu_use
from tools.figures import compare_runs, outcomes, read_metrics
from twinstep.errors import run_command


def write_run(run, losses, checksum=7):
    facts = run / "checkpoints" / str(len(losses)) / "facts"
    facts.mkdir(parents=True)
    (facts / "metadata").write_text(json.dumps({"checksums": {"w": checksum}}))
    lines = [{"step": n, "loss": loss, "tokens_per_second": 1.0 / n} for n, loss in enumerate(losses, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
    return run


@pytest.fixture
def calls(tmp_path):
    return Calls("cpu", tmp_path, tmp_path / "log", time.monotonic() + 60, {})


def test_runs_that_differ_in_speed_alone_are_the_same(tmp_path):
    one, other = write_run(tmp_path / "one", [3.0, 2.0]), write_run(tmp_path / "other", [3.0, 2.0])
    assert compare_runs(one, other) == {
        "same_metrics": True,
        "same_bits": True,
        "largest_loss_difference": 0.0,
        "losses_compared": 2,
    }
    moved = compare_runs(one, write_run(tmp_path / "moved", [3.0, 2.5], checksum=8))
    assert (moved["same_metrics"], moved["same_bits"], moved["largest_loss_difference"]) == (False, False, 0.5)


def test_a_torn_line_of_metrics_is_left_out(tmp_path):
    assert [line["step"] for line in read_metrics(write_run(tmp_path / "run", [3.0, 2.0]))] == [1, 2]


def test_outcomes_are_read_as_pytest_and_its_workers_print_them():
    printed = "tests/a.py::one PASSED [ 50%]\n[gw1] [ 70%] FAILED tests/a.py::two[x] \nFAILED tests/a.py::two[x] - E\n"
    found = outcomes(printed)
    assert (found["passed"], found["failed"], found["failures"]) == (1, 1, ["tests/a.py::two[x]"])
    with pytest.raises(StepError, match="no test"):
        outcomes("usage: pytest")


def test_gpu_use_takes_the_peak():
    assert gpu_use("100, 0\n300, 90\n200, 50\nfailed\n")["peak_memory_mib"] == 300
    assert gpu_use("no devices") == {}


def test_a_command_is_killed_when_its_condition_holds(calls):
    called = calls.run("-c", "import time; print('x', flush=True); time.sleep(50)", limit=40, until=lambda: True)
    assert called.exit_code == "killed"
    assert calls.entries[0]["exit_code"] == "killed"


def test_a_failed_command_is_a_failed_step_with_its_last_line(calls):
    with pytest.raises(StepError, match="ended with 1: ValueError: bad"):
        calls.run("-c", "raise ValueError('bad')", limit=40)


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    for argv in (["--out", "x.txt"], ["--out", str(tmp_path / "x.json"), "--minutes", "0"], ["--only", "nothing"]):
        assert run_command(on_gpu.main, argv) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(on_gpu.main, ["--out", str(tmp_path / "x.json")]) == 2
    assert "--platform cpu" in capsys.readouterr().err


def test_checks_run_beside_each_other_on_a_gpu_and_what_is_timed_runs_alone(tmp_path, monkeypatch):
    under_way, most = set(), {}

    def step(name):
        def make(calls, figures):
            under_way.add(name)
            time.sleep(0.2)
            most[name] = len(under_way)
            under_way.remove(name)

        return make

    monkeypatch.setattr(on_gpu, "STEPS", {name: step(name) for name in on_gpu.STEPS})
    calls = Calls("cuda", tmp_path, tmp_path / "log", time.monotonic() + 60, {})
    made = [entry["name"] for entry in on_gpu.make_steps(calls, list(on_gpu.STEPS))]
    assert made[0] == "versions"
    assert made[-2:] == ["training", "bench"]
    assert sorted(made) == sorted(on_gpu.STEPS)
    assert {name: most[name] for name in ("versions", "training", "bench")} == {
        "versions": 1,
        "training": 1,
        "bench": 1,
    }
    assert max(most[name] for name in on_gpu.CHECKS) > 1
