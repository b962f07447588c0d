"""--extend-to: a run that goes on past its end, by the schedules of its new horizon."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.refusals import Case, assert_refused
from tests.helpers.trust import (
    CHECKPOINT,
    FRAMEWORKS,
    TEXT,
    arguments,
    assert_same_run,
    cut_back,
    lines,
    train,
    write_corpus,
)
from twinstep.cli import read_run_config
from twinstep.run_dir import checkpoint_steps

OFTEN = (
    "--eval-every",
    "3",
    "--save-every",
    "2",
    "--log-every",
    "1",
    "--keep-last",
    "99",
    "--warmdown-fraction",
    "0.5",
)

# XLA takes seconds to compile each run.
BOTH = [pytest.param("jax", marks=pytest.mark.slow), "torch"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "words.txt")


def trained(framework: str, model: str, corpus: Path, to: Path, *flags: str) -> Path:
    assert train(framework, arguments(model, corpus, *OFTEN, *flags, "--out-dir", str(to))) == 0
    return to


def extend(framework: str, model: str, run: Path, steps: int) -> None:
    assert train(framework, [model, "--resume", "--out-dir", str(run), "--extend-to", str(steps)]) == 0


def rates(run: Path) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in lines(run) if "learning_rate" in line}


@pytest.mark.parametrize(("model", "framework"), [("mlp", "jax"), ("mlp", "torch"), ("gpt", "torch")])
def test_an_extended_run_keeps_what_it_was_and_goes_on_as_a_run_of_its_new_length(
    model, framework, corpus, tmp_path, capsys
):
    run = trained(framework, model, corpus, tmp_path / "run", "--steps", "6")
    before = lines(run)
    capsys.readouterr()
    extend(framework, model, run, 12)
    out = capsys.readouterr().out
    assert "extended from 6 to 12 steps: the schedules are those of 12 steps from here on; " in out
    assert "the learning rate goes from 0.33 to 1 of its peak\n" in out
    assert lines(run)[: len(before)] == before
    assert read_run_config(run).train.steps == 12
    facts = CHECKPOINT[framework].read_facts(run, 12)
    assert (facts["extended_from"], facts["extended_to"]) == ([6], 12)

    whole = trained(framework, model, corpus, tmp_path / "whole", "--steps", "12")
    assert {step: rate for step, rate in rates(run).items() if step > 6} == {
        step: rate for step, rate in rates(whole).items() if step > 6
    }
    assert rates(run)[6] != rates(whole)[6]


@pytest.mark.parametrize("framework", BOTH)
def test_an_extended_run_that_is_killed_ends_as_the_undisturbed_one(framework, corpus, tmp_path, capsys):
    whole = trained(framework, "mlp", corpus, tmp_path / "whole", "--steps", "6")
    extend(framework, "mlp", whole, 11)
    extend(framework, "mlp", whole, 16)
    assert CHECKPOINT[framework].read_facts(whole, 16)["extended_from"] == [6, 11]
    for step in (11, 14):  # before the first checkpoint of the second extension, and after it
        run = cut_back(whole, tmp_path / f"cut-{step}", step)
        capsys.readouterr()
        assert train(framework, ["mlp", "--resume", "--out-dir", str(run)]) == 0
        assert ("extended from 11 to 16" in capsys.readouterr().out) == (step == 11)
        assert_same_run(framework, run, whole)
    run = cut_back(whole, tmp_path / "again", 14)  # as the shell's history has it
    extend(framework, "mlp", run, 16)
    assert_same_run(framework, run, whole)


def test_both_frameworks_go_on_alike(corpus, tmp_path):
    runs = [trained(f, "linear", corpus, tmp_path / f, "--steps", "4", "--dtype", "float64") for f in FRAMEWORKS]
    for framework, run in zip(FRAMEWORKS, runs, strict=True):
        extend(framework, "linear", run, 8)
    assert len(lines(runs[0])) == len(lines(runs[1]))
    for ours, theirs in zip(lines(runs[0]), lines(runs[1]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-10)


def test_a_run_in_progress_and_one_whose_horizon_was_counted_otherwise_are_extended_too(corpus, tmp_path):
    run = trained("torch", "embedding", corpus, tmp_path / "run", "--tokens-per-parameter", "0.02")
    steps = checkpoint_steps(run)[-1]
    extend("torch", "embedding", run, steps + 3)
    config = read_run_config(run)
    assert (config.train.steps, config.train.tokens_per_parameter) == (steps + 3, None)
    run = cut_back(run, tmp_path / "cut", 2)
    extend("torch", "embedding", run, 4)
    assert checkpoint_steps(run)[-1] == 4


# From step 4 on the rates are so high that no evaluation improves.
IMPATIENT = ("--steps", "40", "--eval-every", "2", "--patience", "3", "--matrix-lr", "3")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_out_of_patience_gets_it_back(framework, corpus, tmp_path):
    argv = arguments("linear", corpus, *OFTEN, *IMPATIENT, "--out-dir", str(tmp_path / "run"))
    assert train(framework, argv) == 0
    end = checkpoint_steps(tmp_path / "run")[-1]
    assert end < 40
    extend(framework, "linear", tmp_path / "run", 40)  # as many as before, after which it had stopped early
    assert checkpoint_steps(tmp_path / "run")[-1] >= end + 6


REFUSED = {
    "no resume": Case("--extend-to goes on with a run that is there", ("linear", "--extend-to", "9")),
    "a step that is passed": Case(
        "--extend-to is 4, but the run in run is at step 4",
        ("linear", "--resume", "--out-dir", "run", "--extend-to", "4"),
    ),
    "no step": Case("--extend-to is 0; it must be", ("linear", "--resume", "--out-dir", "run", "--extend-to", "0")),
    "steps too": Case(
        "--steps is 9, but the run in run has 4",
        ("linear", "--resume", "--out-dir", "run", "--extend-to", "9", "--steps", "9"),
    ),
    "no checkpoint": Case(
        "has no finished checkpoint to go on from",
        ("linear", "--resume", "--out-dir", "run", "--extend-to", "9"),
        lambda place: [shutil.rmtree(path) for path in (place / "run" / "checkpoints").iterdir()],
    ),
    "steps that were edited": Case(
        "config.json has steps 9, but its checkpoint was made with 4",
        ("linear", "--resume", "--out-dir", "run"),
        lambda place: edit_steps(place / "run" / "config.json", 9),
    ),
}


def edit_steps(path: Path, steps: int) -> None:
    values = json.loads(path.read_text())
    values["train"]["steps"] = steps
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def finished_runs(corpus, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {f: trained(f, "linear", corpus, place / f, "--steps", "4") for f in FRAMEWORKS}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", REFUSED)
def test_an_extension_that_cannot_be_is_refused_in_one_line(
    case, framework, finished_runs, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished_runs[framework], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    REFUSED[case].prepare(tmp_path)
    assert_refused(tmp_path, framework, list(REFUSED[case].argv), REFUSED[case].says, capsys)


def test_a_preset_may_be_named_again_after_an_extension(corpus, tmp_path):
    argv = ["gpt", "--preset", "parity", *TEXT, "--data", str(corpus), "--steps", "2", "--sample-tokens", "1"]
    assert train("torch", [*argv, "--out-dir", str(tmp_path / "run")]) == 0
    again = ["gpt", "--preset", "parity", *TEXT, "--steps", "2", "--resume", "--out-dir", str(tmp_path / "run")]
    assert train("torch", [*again, "--extend-to", "3"]) == 0
    assert checkpoint_steps(tmp_path / "run")[-1] == 3
