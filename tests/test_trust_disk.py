"""A full disk and a read-only one: one clear line, and the last good checkpoint stays readable."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.trust import CHECKPOINT, FRAMEWORKS, arguments, assert_same_run, train, write_corpus
from twinstep.errors import RunError
from twinstep.run_dir import append_metrics, checkpoint_steps


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs takes root")
    yield place
    subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


FLAGS = ("--steps", "40", "--save-every", "1", "--keep-last", "40", "--log-every", "1")


# What orbax leaves of its event loop when a write fails is collected at any time, and says that the loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("framework", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_a_resume_goes_on(framework, small_disk, tmp_path, capsys):
    argv = arguments("embedding", write_corpus(tmp_path / "words.txt"), *FLAGS, "--d-model", "64")
    assert train(framework, [*argv, "--out-dir", str(tmp_path / "whole")]) == 0
    run = small_disk / "run"
    capsys.readouterr()
    assert train(framework, [*argv, "--out-dir", str(run)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: cannot save ")
    assert err.count("\n") == 1
    assert "earlier checkpoints are intact: make room and pass --resume" in err
    steps = checkpoint_steps(run)
    assert 0 < len(steps) < 40
    for step in steps:
        CHECKPOINT[framework].load_params(run, step)
    remount(small_disk, "size=64m")
    assert train(framework, ["embedding", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, tmp_path / "whole")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_disk_that_is_full_from_the_start_is_refused(framework, small_disk, tmp_path, capsys):
    (small_disk / "filler").write_bytes(bytes(2**21 - os.statvfs(small_disk).f_bsize))
    argv = arguments("linear", tmp_path, "--steps", "1")
    assert train(framework, [*argv, "--out-dir", str(small_disk / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "No space left on device; make room, or pass another --out-dir" in err
    (small_disk / "filler").unlink()
    assert train(framework, [*argv, "--out-dir", str(small_disk / "run")]) == 0  # what was left is not in the way


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_read_only_out_dir_is_refused(framework, small_disk, tmp_path, capsys):
    remount(small_disk, "ro")
    assert train(framework, [*arguments("linear", tmp_path), "--out-dir", str(small_disk / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: cannot write to {small_disk}/run: Read-only file system; pass another --out-dir\n"


def test_metrics_that_cannot_be_written_end_the_run(small_disk):
    (small_disk / "filler").write_bytes(bytes(2**21))
    with pytest.raises(RunError, match="No space left on device; the checkpoints are intact"):
        append_metrics(small_disk, {"step": 1})
