"""The norms of parameters and updates by label: the same in both frameworks, and what the checkpoints hold."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.trust import CHECKPOINT, FRAMEWORKS, arguments, lines, train, write_corpus
from torch_ref.optimizer import label_parameters
from twinstep.cli import read_run_config

LABELS = {
    "gpt": {"embedding", "head", "matrix"},
    "linear": {"matrix", "vector"},
    "embedding": {"embedding", "matrix"},
    "mlp": {"matrix", "vector"},
}
FLAGS = ("--steps", "3", "--log-every", "1", "--save-every", "1", "--init", "nonzero", "--dtype", "float64")
FLAGS += ("--accumulation", "2", "--weight-decay", "0.1", "--matrix-weight-decay", "0.1")


def trained(framework: str, model: str, place: Path, *flags: str) -> Path:
    run = place / framework
    place.mkdir(exist_ok=True)
    argv = arguments(model, write_corpus(place / "words.txt"), *flags, "--out-dir", str(run))
    assert train(framework, argv) == 0
    return run


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Step -> the norms by label that were logged at it."""
    return {
        line["step"]: {name: x for name, x in line.items() if "_norm/" in name} for line in lines(run) if "loss" in line
    }


def held(framework: str, run: Path, step: int) -> dict[str, np.ndarray]:
    """Label -> all its numbers in a checkpoint."""
    named = CHECKPOINT[framework].load_params(run, step)[1]
    trainable = {name: x for name, x in named.items() if not name.startswith(("norm.running", "norm.num"))}
    labels = label_parameters(read_run_config(run), list(trainable))
    return {
        label: np.concatenate([x.ravel() for name, x in trainable.items() if labels[name] == label])
        for label in set(labels.values())
    }


@pytest.mark.parametrize("model", [pytest.param("gpt", marks=pytest.mark.slow), "linear", "embedding", "mlp"])
def test_both_log_the_norms_that_their_checkpoints_have(model, tmp_path, x64):
    shared = ("--shared-dropout",) if model == "mlp" else ()
    runs = {framework: trained(framework, model, tmp_path, *FLAGS, *shared) for framework in FRAMEWORKS}
    for framework, run in runs.items():
        norms = logged(run)
        assert list(norms) == [1, 2, 3]
        for step in (2, 3):
            before, after = held(framework, run, step - 1), held(framework, run, step)
            assert set(before) == LABELS[model]
            expected = {f"param_norm/{label}": np.linalg.norm(x) for label, x in before.items()}
            expected |= {f"update_norm/{label}": np.linalg.norm(after[label] - x) for label, x in before.items()}
            assert norms[step] == pytest.approx(expected, rel=1e-12)
    ours, theirs = (logged(runs[framework]) for framework in FRAMEWORKS)
    for step in theirs:
        assert list(ours[step]) == list(theirs[step])
        assert ours[step] == pytest.approx(theirs[step], rel=1e-9)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_first_update_has_the_norm_that_its_optimizer_gives_it(framework, tmp_path, x64):
    """AdamW's first step moves each number by the learning rate, Muon's has singular values of about that size."""
    flags = ("--steps", "1", "--dtype", "float64", "--matrix-lr", "0.5", "--adamw-lr", "0.25")
    found = logged(trained(framework, "linear", tmp_path, *flags))[1]
    assert found["update_norm/vector"] == pytest.approx(0.25 * math.sqrt(10), rel=1e-6)
    # (10, 64), and of rank 9: the softmax's gradients of the ten classes add to zero.
    assert 0.7 <= found["update_norm/matrix"] / (0.5 * math.sqrt(9)) <= 1.2
    sgd = logged(trained(framework, "linear", tmp_path / "sgd", *flags, "--matrix-optimizer", "sgd"))[1]
    assert sgd["update_norm/matrix"] < 0.7 * 0.5 * math.sqrt(9), "the norm does not tell whether Muon is applied"
