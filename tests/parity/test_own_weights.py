"""`parity check --run`: the stages run from a user's own weights, whatever format they are kept in."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from parity.check import check_here
from parity.check_configs import with_flags
from parity.cli import main
from parity.entries import GIVEN
from parity.own_weights import trained_subject, trained_weights
from parity.reference import make_reference
from parity.request import Request
from tests.helpers.snapshots import CONFIGS, GPT, make_snapshot, written
from twinstep.config import Config
from twinstep.data import load_data
from twinstep.errors import UserError
from twinstep.init import initial_weights
from twinstep.resolve import fill_in

TINY_GPT = replace(GPT, model=replace(GPT.model, depth=1, vocab_size=300), data=replace(GPT.data, sequence_len=8))


def kept(folder: Path, config, format: str = "torch", scale: float = 0.1) -> Path:
    """A trained model of moderate weights, in one format."""
    snapshot = make_snapshot(config, 7 if format in ("torch", "jax", "nanochat") else 0)
    weights = {name: scale * array for name, array in snapshot.weights.items()}
    return written(folder, snapshot._replace(weights=weights), format)


def three_steps(folder: Path, model: str | None = None) -> Config:
    return with_flags(trained_subject(folder, model), ["--steps", "3"])


def test_the_run_starts_from_the_weights_of_the_folder(tmp_path):
    config = replace(CONFIGS["linear"], model=replace(CONFIGS["linear"].model, classes=2, head="softmax"))
    folder = kept(tmp_path / "run", config)
    weights = trained_weights(folder)
    start = three_steps(folder)
    data = load_data(start)
    reference = make_reference(fill_in(start, data), data, GIVEN, weights=weights)
    batch = reference.batches[0]
    x, y = batch["inputs"].reshape(-1, 30).astype(np.float64), batch["targets"].reshape(-1)
    logits = x @ weights["linear.weight"].T + weights["linear.bias"]
    assert reference.run.losses[0] == pytest.approx(-log_softmax(logits, axis=1)[range(len(y)), y].mean(), rel=1e-13)


@pytest.mark.parametrize("format", ["torch", "jax", "safetensors", "hf", "nanochat"])
def test_every_format_of_the_same_weights_gives_the_same_start(tmp_path, format):
    folder = kept(tmp_path / format, TINY_GPT, format)
    found = trained_weights(folder)
    expected = make_snapshot(TINY_GPT, 7 if format in ("torch", "jax", "nanochat") else 0).weights
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], np.float32(0.1) * array), name
    config = with_flags(trained_subject(folder, None), ["--steps", "5", "--seed", "3"])
    assert config.model == TINY_GPT.model
    assert (config.train.steps, config.train.seed, config.batch_size, config.train.accumulation) == (5, 3, 2, 2)


@pytest.mark.slow
def test_a_trained_gpt_agrees_from_its_own_weights_alone(tmp_path):
    folder = kept(tmp_path / "run", TINY_GPT)
    result = check_here(Request(three_steps(folder, "gpt"), checkpoint=str(folder)))
    assert result.verdict == "agrees", result.sentence
    assert {t.init for t in result.tensors} == {GIVEN}
    assert [curve.init for curve in result.curves] == [GIVEN]


def test_the_command_repeats_itself_and_names_the_checkpoint(tmp_path):
    folder = kept(tmp_path / "run", CONFIGS["linear"])
    out = tmp_path / "report"
    assert main(["check", "--run", str(folder), "--steps", "3", "--out-dir", str(out)]) == 0
    command = json.loads((out / "parity.json").read_text())["command"]
    assert command.startswith("python -m parity check linear ")
    assert command.endswith(f"--run {folder}")


@pytest.mark.slow
def test_float32_starts_from_the_checkpoint_in_its_process_too(tmp_path):
    folder = kept(tmp_path / "run", CONFIGS["mlp"])
    out = tmp_path / "report"
    args = ["check", "--run", str(folder), "--dtype", "float32", "--steps", "3", "--out-dir", str(out)]
    assert main(args) == 0
    report = json.loads((out / "parity.json").read_text())
    assert {t["init"] for t in report["tensors"]} == {GIVEN}
    assert report["environment"]["jax_enable_x64"] == "False"


def test_weights_of_another_start_would_be_seen(tmp_path):
    """The folder's weights on the reference's side only: the first stage that sees weights says so."""
    folder = kept(tmp_path / "run", CONFIGS["linear"])
    config = three_steps(folder)
    shapes = {name: array.shape for name, array in trained_weights(folder).items()}

    def other_start(*args, weights):
        reference = make_reference(*args, weights=weights)
        return reference._replace(weights=initial_weights(shapes, 0))

    result = check_here(Request(config, checkpoint=str(folder)), other_start)
    assert result.first_divergence is not None
    assert result.first_divergence.stage == "weights"


def test_another_model_than_the_folders_is_refused(tmp_path):
    folder = kept(tmp_path / "run", CONFIGS["linear"])
    with pytest.raises(UserError, match="holds the model linear, not gpt; leave MODEL out"):
        trained_subject(folder, "gpt")


def test_too_few_steps_and_no_checkpoint_are_refused(tmp_path):
    folder = kept(tmp_path / "run", CONFIGS["linear"])
    with pytest.raises(UserError, match="at least 3"):
        with_flags(trained_subject(folder, None), ["--steps", "2"])
    with pytest.raises(UserError, match="neither checkpoints"):
        trained_subject(tmp_path, None)


def test_a_text_model_without_its_tokenizer_reads_bytes(tmp_path):
    bpe = replace(TINY_GPT, data=replace(TINY_GPT.data, tokenizer="bpe", bpe_vocab_size=300))
    folder = kept(tmp_path / "model", bpe, "safetensors")
    config = three_steps(folder)
    assert config.data.tokenizer == "bytes"
    assert config.model.vocab_size == 300
