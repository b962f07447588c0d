"""Training and generating from Python, as a script or a notebook does."""

import importlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.trust import FRAMEWORKS, write_corpus
from twinstep.cli import read_run_config
from twinstep.config import Config, CorpusConfig, GPTConfig, OutputConfig, TabularConfig, TrainConfig
from twinstep.config.models import LinearConfig
from twinstep.errors import UserError
from twinstep.generation import GenerateOptions

ROOMS = {"jax": "jax_impl", "torch": "torch_ref"}


def module(framework: str, name: str):
    return importlib.import_module(f"{ROOMS[framework]}.{name}")


@pytest.fixture(params=FRAMEWORKS)
def framework(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request.param


def tiny(corpus: Path) -> Config:
    return Config(
        model=GPTConfig(depth=1, d_model=16, head_dim=8),
        data=CorpusConfig(data=str(corpus), sequence_len=16),
        train=TrainConfig(steps=4, batch_size=4, eval_batches=1),
        output=OutputConfig(log_every=1, sample_tokens=4),
    )


def test_a_run_from_python_has_a_folder_curves_and_text(framework, tmp_path, capfd):
    train = module(framework, "train").train
    result = train(tiny(write_corpus(tmp_path / "corpus.txt")))
    assert (result.run, result.step, result.exit_code) == (Path(f"runs/{framework}-gpt-1"), 4, 0)
    steps, losses = result.metrics["loss"]
    assert steps.tolist() == [1, 2, 3, 4]
    records = [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    assert losses.tolist() == [record["loss"] for record in records if "loss" in record]
    assert result.metrics["val_loss"][0].tolist() == [0, 2, 4]

    text = module(framework, "generate").generate_text
    capfd.readouterr()
    options = GenerateOptions(run=str(result.run), prompt="tree ", max_tokens=6, samples=2)
    found = text(options)
    assert capfd.readouterr().out == ""
    assert (
        module(framework, "generate").main(
            ["--run", str(result.run), "--prompt", "tree ", "--max-tokens", "6", "--samples", "2"]
        )
        == 0
    )
    assert "\n".join(found) == capfd.readouterr().out
    assert len(found) == 2


def test_a_run_goes_on_from_python_and_a_second_one_takes_the_next_name(framework, tmp_path):
    train = module(framework, "train").train
    config = Config(model=LinearConfig(), data=TabularConfig(), train=TrainConfig(steps=3, eval_batches=1))
    first, second = train(config), train(config)
    assert [r.run.name for r in (first, second)] == [f"{framework}-linear-1", f"{framework}-linear-2"]
    np.testing.assert_array_equal(first.metrics["loss"][1], second.metrics["loss"][1])
    recorded = read_run_config(first.run)
    again = train(replace(recorded, output=replace(recorded.output, resume=True)))
    assert (again.run, again.step) == (first.run, 3)  # it had ended
    with pytest.raises(UserError, match="already holds a run"):
        train(recorded)


def test_training_runs_in_a_thread_where_no_signal_handler_can_be_set(framework):
    train = module(framework, "train").train
    config = Config(model=LinearConfig(), data=TabularConfig(), train=TrainConfig(steps=2, eval_batches=1))
    results = []
    thread = threading.Thread(target=lambda: results.append(train(config)))
    thread.start()
    thread.join()
    assert results[0].step == 2


@pytest.mark.parametrize("room", ["jax_impl", "torch_ref", "parity"])
def test_a_room_shows_its_public_names_and_loads_them_when_asked_for(room, tmp_path):
    program = f"""
import sys
import {room}
assert not {{"jax", "torch"}} & set(sys.modules)
assert dir({room}) == sorted({room}.__all__)
for name in dir({room}):
    getattr({room}, name)
try:
    {room}.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError("an unknown name was found")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
