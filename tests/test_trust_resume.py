"""A resumed run goes on as if nothing had happened, bit for bit."""

import json
import shutil

import pytest

from tests.helpers.trust import (
    CHECKPOINT,
    FRAMEWORKS,
    MODELS,
    arguments,
    assert_same_checkpoint,
    assert_same_run,
    cut_back,
    lines,
    train,
    write_corpus,
)
from twinstep.run_dir import CHECKPOINTS, METRICS, checkpoint_steps

# Nine steps: an evaluation at each third, a checkpoint at each second, a line for each.
OFTEN = ("--steps", "9", "--eval-every", "3", "--save-every", "2", "--log-every", "1", "--keep-last", "9")
CASES = {
    **{model: (model,) for model in MODELS},
    "gpt in bfloat16, accumulated, decayed": (
        *("gpt", "--dtype", "bfloat16", "--accumulation", "2", "--weight-decay", "0.1", "--decay-schedule", "linear"),
        *("--warmup-fraction", "0.3", "--warmdown-fraction", "0.5", "--momentum-steps", "5"),
    ),
    "embedding with SGD": ("embedding", "--matrix-optimizer", "sgd"),
    "mlp with one AdamW": ("mlp", "--optimizer", "adamw"),
    "gpt with its own tokenizer": ("gpt", "--tokenizer", "bpe", "--bpe-vocab-size", "270"),
}
# XLA takes seconds to compile each; every kind of state is in one of these.
QUICK = (("mlp", "jax"), ("mlp", "torch"), ("gpt", "torch"))
LONG = (("gpt with its own tokenizer", "jax"),)  # whose tokenizer is not the framework's


def both(*cases: str) -> list:
    """Each case in each framework, slow but for the quick and the long ones."""
    pairs = [(case, framework) for case in cases for framework in FRAMEWORKS]
    marks = {**dict.fromkeys(QUICK, ()), **dict.fromkeys(LONG, pytest.mark.long)}
    return [pytest.param(*pair, marks=marks.get(pair, pytest.mark.slow)) for pair in pairs]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "words.txt")


@pytest.mark.parametrize(("case", "framework"), both(*CASES))
def test_a_resumed_run_ends_as_the_undisturbed_one(case, framework, corpus, tmp_path):
    model, *flags = CASES[case]
    argv = arguments(model, corpus, *OFTEN, *flags)
    assert train(framework, [*argv, "--out-dir", str(tmp_path / "whole")]) == 0
    run = cut_back(tmp_path / "whole", tmp_path / "cut", 4)
    assert train(framework, [model, "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, tmp_path / "whole")
    for step in checkpoint_steps(run):
        assert_same_checkpoint(framework, run, tmp_path / "whole", step)
    assert sorted(entry.name for entry in run.iterdir()) == sorted(e.name for e in (tmp_path / "whole").iterdir())
    assert all(entry.name.isdecimal() for entry in (run / CHECKPOINTS).iterdir())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_killed_before_its_first_checkpoint_starts_over_from_its_own_config(framework, corpus, tmp_path):
    argv = arguments("mlp", corpus, *OFTEN, "--seed", "7")
    assert train(framework, [*argv, "--out-dir", str(tmp_path / "whole")]) == 0
    run = cut_back(tmp_path / "whole", tmp_path / "cut", 0)
    for missing in ("data.json", "checkpoints"):  # as a kill between the first files would have left it
        path = run / missing
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert train(framework, ["mlp", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, tmp_path / "whole")
    assert json.loads((run / "config.json").read_text())["train"]["seed"] == 7


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_resuming_a_finished_run_says_so_and_changes_nothing(framework, corpus, tmp_path, capsys):
    argv = arguments("linear", corpus, *OFTEN)
    run = tmp_path / "run"
    assert train(framework, [*argv, "--out-dir", str(run)]) == 0
    before = (run / METRICS).read_bytes(), checkpoint_steps(run), CHECKPOINT[framework].read_facts(run, 9)
    capsys.readouterr()
    assert train(framework, ["linear", "--resume", "--out-dir", str(run)]) == 0
    assert capsys.readouterr().out == f"{run} ended at step 9 of 9; there is nothing to continue\n"
    assert ((run / METRICS).read_bytes(), checkpoint_steps(run), CHECKPOINT[framework].read_facts(run, 9)) == before


# From step 4 on the rates are so high that no evaluation improves.
IMPATIENT = ("--steps", "40", "--eval-every", "2", "--patience", "3", "--matrix-lr", "3", "--log-every", "1")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_early_stopping_counts_on_over_a_resume(framework, corpus, tmp_path, capsys):
    argv = arguments("linear", corpus, *IMPATIENT, "--save-every", "1", "--keep-last", "40")
    whole = tmp_path / "whole"
    assert train(framework, [*argv, "--out-dir", str(whole)]) == 0
    end = checkpoint_steps(whole)[-1]
    assert end < 40, "the run was to stop early"
    assert "stopped early" in capsys.readouterr().out
    facts = CHECKPOINT[framework].read_facts(whole, end)
    assert facts["evaluations_without_improvement"] == 3
    assert facts["best_step"] == end - 6
    assert facts["best_val_loss"] == min(line["val_loss"] for line in lines(whole) if "val_loss" in line)

    run = cut_back(whole, tmp_path / "cut", end - 3)
    assert train(framework, ["linear", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, whole)
    capsys.readouterr()
    assert train(framework, ["linear", "--resume", "--out-dir", str(run)]) == 0
    assert f"ended at step {end} of 40" in capsys.readouterr().out


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_best_checkpoint_outlives_the_last_ones_and_a_resume(framework, corpus, tmp_path):
    argv = arguments("linear", corpus, *IMPATIENT[:4], "--matrix-lr", "3", "--save-every", "1", "--keep-last", "2")
    whole = tmp_path / "whole"
    assert train(framework, [*argv, "--out-dir", str(whole)]) == 0
    best = CHECKPOINT[framework].read_facts(whole, 40)["best_step"]
    assert 0 < best < 39
    assert checkpoint_steps(whole) == [best, 39, 40]
    run = cut_back(whole, tmp_path / "cut", 39)
    assert train(framework, ["linear", "--resume", "--out-dir", str(run)]) == 0
    assert checkpoint_steps(run) == [best, 39, 40]


@pytest.mark.parametrize(("model", "framework"), both("gpt", "mlp"))
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(model, framework, corpus, tmp_path):
    runs = {name: tmp_path / name for name in ("first", "second", "other")}
    for name, run in runs.items():
        seed = "2" if name == "other" else "1"
        argv = arguments(model, corpus, "--steps", "4", "--log-every", "1", "--seed", seed, "--out-dir", str(run))
        assert train(framework, argv) == 0
    assert_same_run(framework, runs["first"], runs["second"])
    assert lines(runs["first"]) != lines(runs["other"])
