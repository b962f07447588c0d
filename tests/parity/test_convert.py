import errno
import gc
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch
from safetensors.numpy import load_file, save_file

import jax_impl.checkpoint
import torch_ref.checkpoint
from jax_impl.muon import MuonState
from jax_impl.tree import flatten
from parity.convert import convert, detect
from parity.formats import jax_run, torch_run
from tests.helpers.snapshots import CONFIGS, GPT, assert_same, make_snapshot, read, written
from tests.helpers.trust import train
from twinstep.cli import read_run_config
from twinstep.errors import RunError, UserError
from twinstep.pretrained.arrays import check_arrays
from twinstep.run_dir import checkpoint_steps


@pytest.mark.parametrize(
    ("name", "first", "second"), [("gpt", "jax", "torch"), *((name, "torch", "jax") for name in CONFIGS)]
)
def test_a_run_goes_to_the_other_framework_and_back_bit_for_bit(tmp_path, name, first, second):
    snapshot = make_snapshot(CONFIGS[name], 7)
    source = written(tmp_path / "source", snapshot, first)
    convert(source, tmp_path / "there", None, None, None)
    convert(tmp_path / "there", tmp_path / "back", None, None, None)
    assert [detect(tmp_path / run) for run in ("source", "there", "back")] == [first, second, first]
    for run in ("there", "back"):
        found = read(tmp_path / run, detect(tmp_path / run), None)
        assert_same(found, snapshot)
        assert found.files["data.json"] == snapshot.files["data.json"]
        assert json.loads(found.files["metrics.jsonl"]) == json.loads(snapshot.files["metrics.jsonl"])
        assert read_run_config(tmp_path / run).output.out_dir == str(tmp_path / run)


def test_torch_files_come_back_byte_for_byte(tmp_path):
    source = written(tmp_path / "source", make_snapshot(CONFIGS["mlp"], 7), "torch")
    convert(source, tmp_path / "there", None, None, None)
    convert(tmp_path / "there", tmp_path / "back", None, None, None)
    for name in ("weights.safetensors", "training.safetensors", "facts.json"):
        assert (tmp_path / "back/checkpoints/7" / name).read_bytes() == (source / "checkpoints/7" / name).read_bytes()


def test_moments_go_where_optax_looks_for_them(tmp_path):
    snapshot = make_snapshot(GPT, 7)
    convert(written(tmp_path / "source", snapshot, "torch"), tmp_path / "run", None, None, None)
    state, _ = jax_impl.checkpoint.restore(tmp_path / "run", GPT, jax_run.start(GPT), 7)
    kinds = (optax.ScaleByAdamState, MuonState)
    states = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, kinds))
    found = {}
    for part in states:
        assert isinstance(part, kinds) or int(part) == 7
        for field, name in (("mu", "exp_avg"), ("nu", "exp_avg_sq"), ("momentum", "momentum_buffer")):
            found |= {f"{key}/{name}": leaf for key, leaf in flatten(getattr(part, field, {})).items()}
    assert found.keys() == snapshot.optimizer.keys()
    for name, array in snapshot.optimizer.items():
        assert np.array_equal(found[name], array), name


def test_batch_norm_has_counted_the_batches_of_all_micro_steps(tmp_path):
    config = replace(CONFIGS["mlp"], train=replace(CONFIGS["mlp"].train, accumulation=4))
    source = written(tmp_path / "source", make_snapshot(config, 7), "jax")
    convert(source, tmp_path / "run", None, None, None)
    arrays = load_file(tmp_path / "run/checkpoints/7/weights.safetensors")
    assert arrays["norm.num_batches_tracked"] == 28


def test_a_run_at_its_first_step_has_no_optimizer_state_to_carry(tmp_path):
    snapshot = make_snapshot(GPT, 0)
    convert(written(tmp_path / "source", snapshot, "jax"), tmp_path / "torch", None, None, None)
    convert(tmp_path / "torch", tmp_path / "back", None, None, None)
    assert_same(read(tmp_path / "back", "jax", None), snapshot)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_alone_go_through_safetensors_bit_for_bit(tmp_path, name):
    snapshot = make_snapshot(CONFIGS[name], 7)
    convert(written(tmp_path / "source", snapshot, "torch"), tmp_path / "plain", None, "safetensors", None)
    assert set(load_file(tmp_path / "plain/model.safetensors")) == set(snapshot.weights)
    for format in ("jax", "torch"):
        convert(tmp_path / "plain", tmp_path / format, None, format, None)
        found = read(tmp_path / format, format, None)
        assert (found.step, found.optimizer) == (0, None)
        assert_same(found, snapshot, optimizer=False)


def test_the_loaders_of_both_frameworks_give_the_same_logits(tmp_path):
    source = written(tmp_path / "source", make_snapshot(CONFIGS["gpt-float64"], 7), "torch")
    convert(source, tmp_path / "there", None, None, None)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 32))

    from jax_impl.models import load_tree
    from jax_impl.models import make_model as make_jax_model
    from torch_ref.models import load_weights
    from torch_ref.models import make_model as make_torch_model

    config, weights = torch_ref.checkpoint.load_params(source)
    torch_model = make_torch_model(config)
    load_weights(torch_model, weights)
    config, weights = jax_impl.checkpoint.load_params(tmp_path / "there")
    with jax.enable_x64(True):
        jax_model = make_jax_model(config)
        jax_logits = np.asarray(jax_model.bind(load_tree(jax_model.params, weights), {}, train=False)(tokens))
    with torch.no_grad():
        torch_logits = torch_model(torch.tensor(tokens)).numpy()
    assert np.linalg.norm(jax_logits - torch_logits) <= 1e-13 * np.linalg.norm(torch_logits)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("jax", "torch"), ("torch", "jax")])
@pytest.mark.parametrize("model", ["gpt", "mlp"])
def test_training_continues_in_the_other_framework(tmp_path, first, second, model, x64):
    flags = ["--dtype", "float64", "--steps", "8", "--batch-size", "4", "--save-every", "4", "--accumulation", "2"]
    if model == "gpt":
        (tmp_path / "text").mkdir()
        for number in range(20):
            (tmp_path / f"text/{number}.txt").write_text(f"{number} is followed by {number + 1}.\n" * 20)
        flags += ["--data", str(tmp_path / "text"), "--cache-dir", str(tmp_path / "cache"), "--sequence-len", "16"]
        flags += ["--depth", "1", "--d-model", "32", "--head-dim", "16", "--weight-decay", "0.1", "--eval-batches", "1"]
    else:
        flags += ["--shared-dropout"]
    assert train(first, [model, *flags, "--out-dir", str(tmp_path / "whole")]) == 0
    convert(tmp_path / "whole", tmp_path / "half", None, None, 4)
    assert train(second, [model, "--resume", "--out-dir", str(tmp_path / "half")]) == 0
    whole, half = (read(tmp_path / run, detect(tmp_path / run), None) for run in ("whole", "half"))
    assert (whole.step, half.step) == (8, 8)
    start = read(tmp_path / "whole", detect(tmp_path / "whole"), 4)
    for name, array in {**whole.weights, **whole.optimizer}.items():
        found, before = ({**s.weights, **s.optimizer}[name] for s in (half, start))
        assert np.linalg.norm(array - before) > 1e-4 * np.linalg.norm(array), name
        assert np.linalg.norm(found - array) <= 1e-10 * np.linalg.norm(array), name


def test_the_step_asked_for_is_taken(tmp_path):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), "torch")
    older = written(tmp_path / "older", make_snapshot(GPT, 3), "torch")
    shutil.move(older / "checkpoints/3", source / "checkpoints/3")
    convert(source, tmp_path / "three", None, None, 3)
    assert checkpoint_steps(tmp_path / "three") == [3]
    assert_same(read(tmp_path / "three", "jax", None), make_snapshot(GPT, 3))
    with pytest.raises(UserError, match="no checkpoint of step 5; there are 3, 7"):
        convert(source, tmp_path / "five", None, None, 5)
    plain = written(tmp_path / "plain", make_snapshot(GPT, 3), "safetensors")
    with pytest.raises(UserError, match="--step 3"):
        convert(plain, tmp_path / "out", None, None, 3)


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_that_holds_something_is_not_written_to(tmp_path, name):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), "torch")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        convert(source, tmp_path / "out", None, None, None)
    assert (tmp_path / "out" / name).read_text() == "mine"
    convert(source, tmp_path / "new/deeper/out", None, None, None)
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty", None, None, None)


@pytest.mark.parametrize("format", ["jax", "torch", "safetensors", "hf", "nanochat"])
def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, format):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), "jax" if format == "torch" else "torch")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for target in ("parity.formats.safetensors_folder.save_file", "parity.formats.huggingface.save_file", "torch.save"):
        monkeypatch.setattr(target, full)
    monkeypatch.setattr("parity.formats.jax_run.save", full)
    monkeypatch.setattr(torch_run, "save", full)
    with pytest.raises((UserError, RunError), match="No space left"):
        convert(source, tmp_path / "out", None, format, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def edit_safetensors(path: Path, change) -> None:
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGES = {
    "missing key": (
        lambda d: edit_safetensors(d / "model.safetensors", lambda a: a.pop("h.1.mlp.c_fc.weight")),
        "'h.1.mlp.c_fc.weight' is missing",
    ),
    "extra key": (
        lambda d: edit_safetensors(d / "model.safetensors", lambda a: a.update({"h.2.x": a["wte.weight"] + 0})),
        "'h.2.x' does not belong",
    ),
    "wrong shape": (
        lambda d: edit_safetensors(
            d / "model.safetensors", lambda a: a.update({"wte.weight": a["wte.weight"].T.copy()})
        ),
        r"wte.weight has shape \(32, 256\), the configuration asks for \(256, 32\)",
    ),
    "integers": (
        lambda d: edit_safetensors(
            d / "model.safetensors", lambda a: a.update({"lm_head.weight": a["lm_head.weight"].astype(np.int32)})
        ),
        "lm_head.weight has dtype int32",
    ),
    "float64": (
        lambda d: edit_safetensors(
            d / "model.safetensors", lambda a: a.update({"lm_head.weight": a["lm_head.weight"].astype(np.float64)})
        ),
        "lm_head.weight has dtype float64",
    ),
    "not finite": (
        lambda d: edit_safetensors(d / "model.safetensors", lambda a: a["wte.weight"].__setitem__((3, 4), np.nan)),
        "wte.weight is not finite; take an earlier checkpoint",
    ),
    "truncated": (
        lambda d: os.truncate(d / "model.safetensors", (d / "model.safetensors").stat().st_size - 8),
        "model.safetensors cannot be read",
    ),
    "empty": (lambda d: os.truncate(d / "model.safetensors", 0), "model.safetensors cannot be read"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
    "no config": (lambda d: (d / "config.json").unlink(), "holds neither"),
    "torn config": (lambda d: os.truncate(d / "config.json", 40), "config.json cannot be read"),
    "list config": (lambda d: (d / "config.json").write_text("[]"), "holds no JSON object"),
    "unknown model": (lambda d: edit_json(d / "config.json", model_name="llama"), "config.json: .*'llama'"),
    "missing part": (lambda d: edit_json(d / "config.json", train=None), "config.json: .*'train'"),
    "torn tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "cannot use the tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_of_safetensors_ends_in_one_line_that_says_what(tmp_path, damage):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), "safetensors")
    spoil, message = DAMAGES[damage]
    spoil(source)
    assert_refused(source, tmp_path, message)


def test_an_array_of_another_type_than_the_configurations_is_refused():
    with pytest.raises(UserError, match="here: a has dtype float64, the configuration asks for float32"):
        check_arrays("here", {"a": np.zeros(3)}, {"a": (3,)}, "float32")


def assert_refused(source: Path, tmp_path: Path, message: str, from_format: str | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        convert(source, tmp_path / "out", from_format, None, None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_config_whose_sizes_are_not_filled_in_is_refused(tmp_path):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), "safetensors")
    config = json.loads((source / "config.json").read_text())
    edit_json(source / "config.json", model={**config["model"], "vocab_size": None})
    assert_refused(source, tmp_path, "vocab_size")


# A read that orbax gives up leaves coroutines that nobody awaits; they complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("format", ["jax", "torch"])
def test_a_damaged_run_is_refused(tmp_path, format):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), format)
    largest = max((p for p in (source / "checkpoints/7").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert_refused(source, tmp_path, "checkpoints/7 cannot be read")
    os.truncate(largest, 100)
    assert_refused(source, tmp_path, "checkpoints/7 cannot be read")
    gc.collect()


@pytest.mark.parametrize("format", ["jax", "torch"])
def test_a_run_without_a_finished_checkpoint_is_refused(tmp_path, format):
    source = written(tmp_path / "source", make_snapshot(GPT, 7), format)
    (source / "checkpoints/7").rename(source / "checkpoints/7.tmp")
    assert_refused(source, tmp_path, "no finished checkpoint")
    assert_refused(source, tmp_path, "no finished checkpoint", format)


def test_a_source_taken_for_another_format_is_refused(tmp_path):
    snapshot = make_snapshot(GPT, 7)
    sources = {format: written(tmp_path / format, snapshot, format) for format in ("jax", "torch", "hf", "nanochat")}
    sources["safetensors"] = written(tmp_path / "safetensors", snapshot, "safetensors")
    for actual, source in sources.items():
        for claimed in set(sources) - {actual}:
            with pytest.raises(UserError) as caught:
                convert(source, tmp_path / "out", claimed, "safetensors" if claimed != "safetensors" else "jax", None)
            assert "\n" not in str(caught.value)
            assert not (tmp_path / "out").exists()


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", tmp_path, "holds neither")
    assert_refused(tmp_path / "none", tmp_path, "is not a folder")
    assert_refused(tmp_path / "none", tmp_path, "--from is 'keras'", "keras")
    source = written(tmp_path / "source", make_snapshot(GPT, 7), "jax")
    with pytest.raises(UserError, match="--to is 'onnx'"):
        convert(source, tmp_path / "out", None, "onnx", None)
    with pytest.raises(UserError, match="already holds jax"):
        convert(source, tmp_path / "out", None, "jax", None)


@pytest.mark.parametrize("format", ["hf", "nanochat"])
def test_a_classifier_goes_only_where_it_fits(tmp_path, format):
    source = written(tmp_path / "source", make_snapshot(CONFIGS["linear"], 7), "jax")
    with pytest.raises(UserError, match="a run of linear"):
        convert(source, tmp_path / "out", None, format, None)
    assert not (tmp_path / "out").exists()


def test_counts_of_steps_that_differ_from_the_checkpoint_are_refused(tmp_path):
    snapshot = make_snapshot(GPT, 7)
    source = written(tmp_path / "source", snapshot._replace(step=8), "torch")
    (source / "checkpoints/8").rename(source / "checkpoints/7")
    assert_refused(source, tmp_path, "wte.weight/step is 8 at step 7|lm_head.weight/step is 8 at step 7")
    source = written(tmp_path / "jax", snapshot._replace(step=8), "jax")
    (source / "checkpoints/8").rename(source / "checkpoints/7")
    assert_refused(source, tmp_path, "has counted the steps")


def test_weights_alone_are_the_start_of_a_training(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / f"text/{number}.txt").write_text(f"{number} is followed by {number + 1}.\n" * 40)
    config = replace(GPT, train=replace(GPT.train, steps=2, eval_batches=1))
    plain = written(tmp_path / "plain", make_snapshot(config, 7), "safetensors")
    convert(plain, tmp_path / "run", None, "torch", None)
    places = ["--data", str(tmp_path / "text"), "--cache-dir", str(tmp_path / "cache")]
    assert train("torch", ["gpt", "--resume", "--out-dir", str(tmp_path / "run"), *places]) == 0
    assert checkpoint_steps(tmp_path / "run") == [0, 2]
    assert json.loads((tmp_path / "run/data.json").read_text())["tokenizer"] == "bytes"
