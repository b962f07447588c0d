"""Runs of several processes, each with a device of its own: one trajectory, one set of checkpoints, one clear end."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from jax_impl import processes
from jax_impl.checkpoint import load_params
from tests.helpers.multihost import Processes
from twinstep.config import Config, DeviceConfig
from twinstep.errors import RunError, UserError
from twinstep.run_dir import checkpoint_steps, read_metrics

TOLERANCE = 1e-12  # relative, in float64

COMMON = ["--dtype=float64", "--init=nonzero", "--log-every=1", "--save-every=4", "--accumulation=2"]
MLP = ["mlp", "--shared-dropout", "--hidden=16", "--batch-size=32", "--steps=12", *COMMON]
GPT = ["gpt", "--depth=2", "--d-model=16", "--head-dim=8", "--sequence-len=16", "--masked-targets=0.4"]
GPT += ["--batch-size=16", "--steps=12", "--sample-tokens=4", *COMMON]


def train(count: int, folder: Path, flags: list[str], **how) -> list[tuple[int, str, str]]:
    folder.mkdir(exist_ok=True)
    return Processes(count, folder, [*flags, f"--out-dir={folder / 'run'}"], **how).finish()


def assert_same_run(found: Path, expected: Path) -> None:
    """Every logged loss and norm, and the last parameters and buffers."""
    for record, truth in zip(read_metrics(found), read_metrics(expected), strict=True):
        assert record["step"] == truth["step"]
        assert record.keys() == truth.keys()
        for name in (name for name in truth if name in ("loss", "val_loss") or "_norm" in name):
            assert record[name] == pytest.approx(truth[name], rel=TOLERANCE), f"{name} at step {truth['step']}"
    weights, truths = load_params(found)[1], load_params(expected)[1]
    assert weights.keys() == truths.keys()
    for name in truths:
        error = np.linalg.norm(weights[name] - truths[name]) / np.linalg.norm(truths[name])
        assert error <= TOLERANCE, f"{name} is off by {error:.1e}"
    assert checkpoint_steps(found) == checkpoint_steps(expected)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    ((code, _, err),) = train(1, folder, MLP)
    assert code == 0, err
    return folder / "run"


def caused_by(cause: Exception) -> RunError:
    error = RunError("cannot save the checkpoint of step 8")
    error.__cause__ = cause
    return error


GONE = RuntimeError("UNAVAILABLE: [gloo] Connection closed by peer")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (GONE, True),
        (caused_by(GONE), True),
        (caused_by(OSError("No space left on device")), False),
        (UserError("barrier.txt is not a folder"), False),
        (KeyError("wte"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_lost_process_is_distinguished_from_other_failures(error, lost, monkeypatch):
    assert not processes.has_lost(error)  # a single process has nobody to lose
    monkeypatch.setattr(processes, "several", lambda: True)
    assert processes.has_lost(error) == lost


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_each_reads_its_share(tmp_path, one_process):
    run = Processes(2, tmp_path, [*MLP, f"--out-dir={tmp_path / 'run'}"])
    (code, out, err), (other_code, other_out, other_err) = run.finish()
    assert (code, other_code) == (0, 0), err + other_err
    assert_same_run(tmp_path / "run", one_process)
    assert [run.shards_read(number) for number in range(2)] == [[[0, 2]], [[1, 2]]]
    assert "step 12: val_loss" in out
    assert "val_loss" not in other_out  # only the first process shows and logs


@pytest.mark.slow
def test_when_a_process_dies_the_other_ends_with_one_line_and_one_process_resumes(tmp_path, one_process):
    """It dies with its part of a checkpoint unwritten, for which the other must not wait."""
    start = time.monotonic()
    ends = train(2, tmp_path, [*MLP, "--parallel=fsdp"], dying=1, die_at=8, die_in="save")
    (code, _, err), (killed, _, _) = ends
    assert killed == -signal.SIGKILL
    assert code == 1
    lines = [line for line in err.splitlines() if not line.startswith("[Gloo]")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: process 0 of 2 has lost another one")
    assert time.monotonic() - start < 300
    assert checkpoint_steps(tmp_path / "run") == [4, 6]  # the one of step 8 was not whole
    ((code, _, err),) = train(1, tmp_path, [*MLP, "--resume"])
    assert code == 0, err
    assert_same_run(tmp_path / "run", one_process)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["pmap", "fsdp"])
@pytest.mark.parametrize("flags", [MLP, GPT], ids=["mlp", "gpt"])
def test_four_processes_train_as_one_does_and_after_a_death_two_resume(flags, mode, tmp_path):
    ((code, _, err),) = train(1, tmp_path / "one", flags)
    assert code == 0, err
    ends = train(4, tmp_path / "four", [*flags, f"--parallel={mode}"])
    assert [code for code, _, _ in ends] == [0] * 4, ends
    assert_same_run(tmp_path / "four" / "run", tmp_path / "one" / "run")

    folder = tmp_path / "broken"
    folder.mkdir()
    broken = Processes(4, folder, [*flags, f"--parallel={mode}", f"--out-dir={folder / 'run'}"], dying=2, die_at=6)
    broken.running[2].wait(300)
    survivors = broken.finish(timeout=60)
    assert [code for code, _, _ in survivors] == [1, 1, -signal.SIGKILL, 1], survivors
    ends = train(2, folder, [*flags, f"--parallel={mode}", "--resume"])
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert_same_run(folder / "run", tmp_path / "one" / "run")


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path):
    flags = ["--steps=100000" if flag == "--steps=12" else flag for flag in MLP]
    run = Processes(2, tmp_path, [*flags, f"--out-dir={tmp_path / 'run'}"])
    while not (tmp_path / "run").exists() or not checkpoint_steps(tmp_path / "run"):
        assert run.running[0].poll() is None, run.finish()
        time.sleep(0.1)
    run.running[1].send_signal(signal.SIGTERM)  # not the first one, which shows and logs
    (code, out, err), (other_code, _, other_err) = run.finish(timeout=60)
    assert (code, other_code) == (0, 0), err + other_err
    assert f"interrupted: saved step {checkpoint_steps(tmp_path / 'run')[-1]}" in out


@pytest.mark.long
def test_slurm_tasks_find_each_other(tmp_path):
    ends = train(2, tmp_path, MLP, slurm=True)
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "of 2 processes" in ends[0][1]


@pytest.mark.long
def test_bad_input_in_a_run_of_two_ends_both_with_the_same_line(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("do not touch")
    ends = train(2, tmp_path, MLP)
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert all("is not empty (it holds mine.txt)" in err for _, _, err in ends)


def test_flags_that_need_each_other_say_so():
    with pytest.raises(UserError, match="needs --num-processes and --process-id too"):
        processes.initialize(Config(devices=DeviceConfig(coordinator="localhost:1234")))
    with pytest.raises(UserError, match="pass HOST:PORT of process 0"):
        processes.initialize(Config(devices=DeviceConfig(coordinator="localhost", num_processes=2, process_id=0)))


def test_one_process_agrees_with_itself_and_does_everything():
    assert processes.shard() == (0, 1)
    assert processes.text_of_first("here") == "here"
    assert processes.agreed(15, None) == 15
    assert processes.first_does(lambda: "done") == "done"
