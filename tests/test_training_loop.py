"""What the loops of both frameworks do beside the step: horizons, accumulation, saving, sampling, speaking."""

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.trust import CHECKPOINT, FRAMEWORKS, arguments, lines, train, write_corpus
from twinstep.cli import read_run_config
from twinstep.data.tokenizer import train_bpe
from twinstep.flops import flops_per_token, parameter_count
from twinstep.run_dir import CHECKPOINTS, checkpoint_steps

PROMPT = ("--sample-prompt", "über ")
# XLA takes seconds to compile a model.
IN_BOTH = [pytest.param("jax", marks=pytest.mark.slow), "torch"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "words.txt")


@pytest.fixture
def finish(corpus, tmp_path):
    """Trains to the end and returns the run directory."""

    def run(framework: str, model: str, *flags: str) -> Path:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        assert train(framework, [*arguments(model, corpus), *flags, "--out-dir", str(place)]) == 0
        return place

    return run


@pytest.mark.parametrize(
    ("framework", "model"),
    [
        ("torch", "gpt"),
        ("torch", "embedding"),
        ("jax", "embedding"),
        pytest.param("jax", "gpt", marks=pytest.mark.long),  # its step is held to this in tests/jax_impl/test_step.py
    ],
)
def test_one_micro_step_of_eight_is_eight_of_one(framework, model, finish, x64):
    flags = ("--dtype", "float64", "--init", "nonzero", "--batch-size", "8", "--masked-targets", "0.3", "--steps", "3")
    whole = finish(framework, model, *flags, "--log-every", "1")
    parts = finish(framework, model, *flags, "--log-every", "1", "--accumulation", "8")
    for ours, theirs in zip(lines(parts), lines(whole), strict=True):
        assert ours == {name: pytest.approx(value, rel=1e-12, abs=0) for name, value in theirs.items()}
    expected = CHECKPOINT[framework].load_params(whole)[1]
    for name, array in CHECKPOINT[framework].load_params(parts)[1].items():
        assert array.dtype == np.float64
        gap = np.linalg.norm(array - expected[name]) / np.linalg.norm(expected[name])
        assert gap <= 1e-12, (name, gap)


@pytest.mark.parametrize("framework", IN_BOTH)
def test_the_horizon_follows_from_flops_or_from_tokens_per_parameter(framework, finish):
    run = finish(framework, "embedding", "--tokens-per-parameter", "0.05", "--batch-tokens", "64")
    config = read_run_config(run)
    assert config.batch_size == 4
    assert config.train.steps == int(0.05 * parameter_count(config.model) // 64) == checkpoint_steps(run)[-1]
    flops = 5.4 * 64 * flops_per_token(config.model, 16)
    run = finish(framework, "embedding", "--target-flops", str(flops), "--batch-tokens", "64")
    assert checkpoint_steps(run) == [5]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_metrics_have_the_keys_that_they_are_documented_with(framework, finish):
    run = finish(framework, "embedding", "--steps", "4", "--log-every", "2")
    kinds = [set(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu"}
    trained |= {f"{name}/{label}" for name in ("param_norm", "update_norm") for label in ("embedding", "matrix")}
    evaluated = {"step", "val_loss", "val_bpb"}
    assert kinds == [evaluated, trained, trained, evaluated, trained, evaluated]
    assert [line["step"] for line in lines(run)] == [0, 1, 2, 2, 4, 4]
    run = finish(framework, "linear", "--steps", "1")
    kinds = [set(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kinds[1] == {name.replace("tokens_", "examples_").replace("/embedding", "/vector") for name in trained}
    assert kinds[2] == {"step", "val_loss", "val_accuracy"}


@pytest.mark.parametrize("framework", IN_BOTH)
def test_samples_and_everything_that_decides_a_run_are_said(framework, finish, capsys):
    finish(framework, "gpt", "--steps", "4", "--sample-every", "2", "--remat", "--dtype", "bfloat16")
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("sample at step")] == [
        "sample at step 2:",
        "sample at step 4:",
    ]
    for said in (
        "gpt: 11,264 parameters",
        "devices: 1 x cpu",
        "arithmetic: bfloat16, parameters and optimizer state float32, orthogonalization",
        "matmul precision highest, remat on",
        "horizon: 4 steps of 64 tokens in 1 micro-steps",
        "sha256",
        "bits per byte of the validation text",
    ):
        assert said in out, said


@pytest.mark.parametrize(
    ("framework", "flags", "prompt"),
    [
        ("torch", (), ""),
        ("torch", PROMPT, "über "),
        pytest.param("jax", (), "", marks=pytest.mark.long),
        pytest.param("jax", PROMPT, "über ", marks=pytest.mark.slow),
    ],
)
def test_a_sample_begins_a_document_or_continues_the_prompt(framework, flags, prompt, finish, monkeypatch, capsys):
    given = []

    def sample_text(*arguments):
        given.append(arguments[-4])
        return own(*arguments)

    module = importlib.import_module(f"{'jax_impl' if framework == 'jax' else 'torch_ref'}.train")
    own = module.sample_text
    monkeypatch.setattr(module, "sample_text", sample_text)
    finish(framework, "gpt", "--steps", "1", *flags)
    assert given == [prompt]
    assert f"sample at step 1:\n{prompt}" in capsys.readouterr().out


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_bpe_that_fell_short_of_its_size_says_so(framework, finish, capsys):
    finish(framework, "embedding", "--steps", "1", "--tokenizer", "bpe", "--bpe-vocab-size", "70000")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tokenizer:")]
    assert re.fullmatch(
        r"tokenizer: BPE reached 2\d\d of the 70,000 tokens asked for; its training text has no more pairs to join",
        line,
    )
    finish(framework, "embedding", "--steps", "1", "--tokenizer", "bpe", "--bpe-vocab-size", "260")
    assert "tokenizer:" not in capsys.readouterr().out


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_begun_with_a_tokenizer_file_goes_on_without_it(framework, finish, tmp_path, capsys):
    file = tmp_path / "mine.json"
    train_bpe(["words of another text\n"] * 9, 270).save(file)
    flags = ("--steps", "2", "--save-every", "1", "--tokenizer", str(file))
    run = finish(framework, "embedding", *flags)
    assert (run / "tokenizer.json").read_bytes() == file.read_bytes()
    assert "tokenizer:" not in capsys.readouterr().out
    whole = lines(run)
    file.unlink()
    shutil.rmtree(run / CHECKPOINTS / "2")
    corpus = str(read_run_config(run).data.data)
    argv = [*arguments("embedding", Path(corpus)), *flags, "--out-dir", str(run), "--resume"]
    assert train(framework, argv) == 0
    assert lines(run) == whole


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_norm_that_is_logged_is_the_one_before_clipping(framework, finish):
    free = lines(finish(framework, "linear", "--steps", "1", "--clip-norm", "0"))
    clipped = lines(finish(framework, "linear", "--steps", "1", "--clip-norm", "0.01"))
    assert clipped[1]["grad_norm"] == pytest.approx(free[1]["grad_norm"], rel=1e-6)
    assert free[1]["grad_norm"] > 0.01


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_save_interval_only_the_end_is_saved(framework, finish):
    assert checkpoint_steps(finish(framework, "linear", "--steps", "4")) == [4]
