"""SIGTERM, Ctrl-C and numbers that overflow: the run ends in order, says why, and nothing of worth is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.trust import CHECKPOINT, FRAMEWORKS, TRAINER, arguments, assert_same_run, train
from twinstep.run_dir import checkpoint_steps, read_metrics
from twinstep.signals import StopRequest

NINE = ("--steps", "9", "--eval-every", "3", "--log-every", "1", "--keep-last", "9")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_signal_during_an_evaluation_loses_no_step(framework, tmp_path, monkeypatch, capsys):
    """The evaluation of step 3 has begun when the signal comes: it is acted upon after step 4, and that is saved."""
    argv = arguments("mlp", tmp_path, *NINE)
    assert train(framework, [*argv, "--out-dir", str(tmp_path / "whole")]) == 0
    evaluate, calls = TRAINER[framework].evaluate, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*args)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER[framework], "evaluate", interrupted)
        assert train(framework, [*argv, "--out-dir", str(run)]) == 0
    assert checkpoint_steps(run) == [4]
    assert f"interrupted: saved step 4 in {run}; --resume --out-dir {run} continues" in capsys.readouterr().out
    assert train(framework, ["mlp", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, tmp_path / "whole")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_batch_that_is_not_finite_ends_the_run_before_it_can_spoil_a_checkpoint(
    framework, tmp_path, monkeypatch, capsys
):
    argv = arguments("mlp", tmp_path, *NINE, "--save-every", "1")
    assert train(framework, [*argv, "--out-dir", str(tmp_path / "whole")]) == 0
    train_batches = TRAINER[framework].train_batches

    def spoiled(source, start, *rest):
        for number, batch in enumerate(train_batches(source, start, *rest), start):
            if number == 4:
                batch["inputs"] = batch["inputs"] * np.float32("nan")
            yield batch

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TRAINER[framework], "train_batches", spoiled)
        capsys.readouterr()
        assert train(framework, [*argv, "--out-dir", str(run)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.match(
        r"error: step 5: the loss is nan .*; not finite: fc1\.weight; the checkpoint of step \d is intact", err
    )
    assert f"its batch, number 4 (python -m twinstep.data --run {run} --batch 4), or start a new run" in err
    assert checkpoint_steps(run) == [1, 2, 3, 4]
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [1, 2, 3, 4]
    assert train(framework, ["mlp", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, tmp_path / "whole")


# The first update decays the weights by 1e60: more than float32 holds.
OVERFLOW = ("--matrix-optimizer", "sgd", "--matrix-lr", "1e30", "--matrix-weight-decay", "1e30")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_parameters_that_overflow_are_never_saved(framework, tmp_path, capsys):
    """Loss and gradient of step 1 are finite, what its update makes of the weights is not."""
    run = tmp_path / "run"
    flags = ("--steps", "5", "--save-every", "1", *OVERFLOW)
    assert train(framework, [*arguments("linear", tmp_path, *flags), "--out-dir", str(run)]) == 1
    err = capsys.readouterr().err
    assert err == "error: step 1: linear.weight is not finite, so it is not saved; earlier checkpoints are intact\n"
    assert checkpoint_steps(run) == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_evaluation_that_is_not_finite_ends_the_run(framework, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ("--steps", "5", "--eval-every", "1", *OVERFLOW)
    assert train(framework, [*arguments("linear", tmp_path, *flags), "--out-dir", str(run)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "step 1: the validation loss is nan; not finite: linear.weight; no checkpoint was saved before" in err
    assert all(np.isfinite(value) for line in read_metrics(run) for value in line.values())


def test_a_second_ctrl_c_interrupts_at_once_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.exit_code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until the run has logged `step`."""
    while process.poll() is None:
        if (run / "metrics.jsonl").exists() and any(line["step"] >= step for line in read_metrics(run)):
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_real_process_obeys_sigterm_and_ctrl_c(framework, tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    module = "jax_impl.train" if framework == "jax" else "torch_ref.train"
    flags = arguments("linear", tmp_path, "--steps", "1000000", "--log-every", "1")
    reached = 0
    for number, (sent, code) in enumerate([(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGTERM, 0)]):
        argv = ["linear", "--resume"] if number else flags
        process = subprocess.Popen(
            [sys.executable, "-m", module, *argv, "--out-dir", str(run)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_step(run, reached + 3, process)
        process.send_signal(sent)
        out, err = process.communicate()
        assert process.returncode == code, err
        assert err == ""
        step = checkpoint_steps(run)[-1]
        assert f"interrupted: saved step {step} in {run}" in out.splitlines()[-1]
        assert step >= reached + 3
        logged = [line["step"] for line in read_metrics(run) if "loss" in line]
        assert logged == list(range(1, step + 1)), "steps are missing or doubled"
        CHECKPOINT[framework].read_facts(run, step)
        reached = step
