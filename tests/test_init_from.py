"""--init-from: a new run begins with the weights and the tokenizer of a model that is there."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from parity.convert import convert
from tests.helpers.refusals import Case, assert_refused, put
from tests.helpers.snapshots import GPT as GPT_CONFIG
from tests.helpers.snapshots import make_snapshot, written
from tests.helpers.trust import (
    CHECKPOINT,
    FRAMEWORKS,
    TABLE,
    TEXT,
    arguments,
    assert_same_run,
    cut_back,
    lines,
    train,
    write_corpus,
)
from twinstep.cli import parse_train_config, read_run_config
from twinstep.config import GPTConfig
from twinstep.data.tokenizer import train_bpe
from twinstep.pretrained.files import byte_tokenizer

# XLA takes seconds to compile each run.
BOTH = [pytest.param("jax", marks=pytest.mark.slow), "torch"]

BPE = ("--tokenizer", "bpe", "--bpe-vocab-size", "270")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A text, finished runs of each framework, and a gpt with random weights in each format of weights."""
    place = tmp_path_factory.mktemp("place")
    corpus = write_corpus(place / "words.txt")
    for framework in FRAMEWORKS:
        for model, flags in (("mlp", ()), ("embedding", BPE)):
            argv = arguments(model, corpus, "--steps", "3", *flags, "--out-dir", str(place / f"{framework}-{model}"))
            assert train(framework, argv) == 0
    for format in ("safetensors", "hf", "nanochat", "torch"):
        written(place / f"gpt-{format}", make_snapshot(GPT_CONFIG, 7), format)
    return place


@pytest.fixture
def here(place, monkeypatch) -> Path:
    monkeypatch.chdir(place)
    return place


def data_of(model: str) -> tuple[str, ...]:
    return (*TEXT, "--data", "words.txt") if model in ("gpt", "embedding") else TABLE


def begun(framework: str, source: str, model: str, to: Path, *flags: str) -> Path:
    """A run of two steps that began with a model."""
    argv = ["--init-from", source, *data_of(model), "--steps", "2", "--log-every", "1", *flags, "--out-dir", str(to)]
    assert train(framework, argv) == 0
    return to


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("model", ["mlp", "embedding"])
def test_a_run_begins_where_another_ended(model, framework, here, tmp_path):
    source = f"{framework}-{model}"
    run = begun(framework, source, model, tmp_path / "run", "--seed", "5", "--matrix-lr", "0.001")
    last, first = lines(here / source)[-1], lines(run)[0]
    assert (last["step"], first["step"]) == (3, 0)
    assert first["val_loss"] == last["val_loss"]
    config = read_run_config(run)
    assert (config.model, config.train.seed, config.optimizer.matrix_lr) == (
        read_run_config(here / source).model,
        5,
        0.001,
    )
    assert (
        CHECKPOINT[framework].load_params(run)[1].keys() == CHECKPOINT[framework].load_params(here / source)[1].keys()
    )
    if model == "embedding":
        assert config.data.tokenizer == "bpe"
        assert (run / "tokenizer.json").read_bytes() == (here / source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("parallel", ["pmap", "fsdp"])
def test_devices_make_no_difference(parallel, here, tmp_path):
    run = begun("jax", "jax-mlp", "mlp", tmp_path / "run", "--parallel", parallel)
    assert lines(run)[0]["val_loss"] == pytest.approx(lines(here / "jax-mlp")[-1]["val_loss"], rel=1e-6)


@pytest.mark.parametrize("source", ["gpt-safetensors", "gpt-hf", "gpt-nanochat", "gpt-torch"])
def test_every_format_gives_the_same_start(source, here, tmp_path):
    run = begun("torch", source, "gpt", tmp_path / "run", "--rotary-dtype", "float32", "--dtype", "float32")
    plain = begun("torch", "gpt-safetensors", "gpt", tmp_path / "plain")
    assert lines(run) == lines(plain)
    record, expected = (json.loads((folder / "data.json").read_text()) for folder in (run, plain))
    assert record["init_sha256"] == expected["init_sha256"]
    assert record["init_from"] == source
    assert read_run_config(run).model.heads == 4


@pytest.mark.slow
def test_both_frameworks_begin_alike(here, tmp_path):
    flags = ("--dtype", "float64", "--softcap", "20")
    ours, theirs = (begun(f, "gpt-hf", "gpt", tmp_path / f, *flags) for f in FRAMEWORKS)
    assert [line["step"] for line in lines(ours)] == [line["step"] for line in lines(theirs)]
    for a, b in zip(lines(ours), lines(theirs), strict=True):
        assert a == pytest.approx(b, rel=1e-12)
    records = [json.loads((run / "data.json").read_text()) for run in (ours, theirs)]
    assert records[0] == records[1]
    assert read_run_config(ours).model.softcap == 20


def test_the_folders_settings_are_defaults_and_flags_change_them(here):
    def parse(*argv: str):
        return parse_train_config("train", list(argv), "jax")

    config = parse("--init-from", "gpt-hf")
    assert (config.model.depth, config.model.width, config.model.vocab_size) == (2, 32, 256)
    assert (config.data.sequence_len, config.data.data, config.train.steps) == (32, None, 700)
    config = parse("gpt", "--init-from=gpt-hf", "--sequence-len", "64", "--softcap", "30", "--depth", "2")
    assert (config.data.sequence_len, config.model.softcap) == (64, 30)
    assert parse("--init-from", "jax-mlp").model_name == "mlp"
    assert isinstance(parse("--init-from", "gpt-nanochat", "--seed", "3").model, GPTConfig)


def test_a_tokenizer_that_lies_elsewhere_is_passed(here, tmp_path):
    shutil.copytree("torch-embedding", tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").rename(tmp_path / "its.json")
    argv = ("--tokenizer", str(tmp_path / "its.json"))
    run = begun("torch", str(tmp_path / "source"), "embedding", tmp_path / "run", *argv)
    assert lines(run)[0]["val_loss"] == lines(here / "torch-embedding")[-1]["val_loss"]
    assert (run / "tokenizer.json").read_bytes() == (tmp_path / "its.json").read_bytes()


@pytest.mark.parametrize("framework", BOTH)
def test_until_its_first_checkpoint_a_run_reads_the_folder_again_and_then_never(framework, here, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(here / f"{framework}-mlp", source)
    whole = begun(framework, str(source), "mlp", tmp_path / "whole", "--save-every", "1")
    run = cut_back(whole, tmp_path / "cut", 0)
    assert train(framework, ["mlp", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, whole)

    cut_back(whole, tmp_path / "changed", 0)
    other = begun(framework, str(source), "mlp", tmp_path / "other")
    shutil.rmtree(source)
    shutil.copytree(other, source)
    argv = ["mlp", "--resume", "--out-dir", str(tmp_path / "changed")]
    assert_refused(tmp_path, framework, argv, "the model in .*source has changed since the run in", capsys)
    shutil.rmtree(source)
    assert_refused(tmp_path, framework, argv, "source is not a folder", capsys)

    run = cut_back(whole, tmp_path / "later", 1)
    assert train(framework, ["mlp", "--resume", "--out-dir", str(run)]) == 0
    assert_same_run(framework, run, whole)


def test_a_hash_is_of_names_shapes_types_and_numbers():
    from twinstep.pretrained.start import sha256

    a = np.arange(6, dtype=np.float32)
    others = [{"b": a}, {"a": a.reshape(2, 3)}, {"a": a.astype(np.float64)}, {"a": a + 1}, {"a": a, "b": a}, {}]
    assert len({sha256(weights) for weights in ({"a": a}, *others)}) == 7
    assert sha256({"a": a, "b": a.reshape(2, 3).T}) == sha256({"b": np.array(a.reshape(2, 3).T), "a": a})


def with_other_tokenizer(place: Path) -> None:
    shutil.copytree(place / "gpt-hf", place / "no-tokenizer")
    (place / "no-tokenizer" / "tokenizer.json").unlink()


def with_weights_of_another_shape(place: Path) -> None:
    shutil.copytree(place / "gpt-hf", place / "other-shape")
    path = place / "other-shape" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_key_value_heads": 1}))


NEW = ("--out-dir", "new")
REFUSED = {
    "no folder": Case("nowhere is not a folder", ("--init-from", "nowhere", *NEW)),
    "a file": Case("words.txt is not a folder", ("--init-from", "words.txt", *NEW)),
    "a folder of something else": Case(
        "holds neither checkpoints/", ("--init-from", "empty", *NEW), lambda p: (p / "empty").mkdir()
    ),
    "another model": Case("RUN holds a model of mlp, not of gpt", ("gpt", "--init-from", "RUN", *NEW)),
    "another depth": Case(
        "--depth is 3, but the model in gpt-hf has 2", ("--init-from", "gpt-hf", "--depth", "3", *NEW)
    ),
    "another width": Case("--d-model is 64, but .* has 32", ("--init-from", "gpt-hf", "--d-model", "64", *NEW)),
    "other heads": Case("--head-dim is 16, but .* has 8", ("--init-from", "gpt-hf", "--head-dim", "16", *NEW)),
    "other key heads": Case("--kv-heads is 4, but .* has 2", ("--init-from", "gpt-hf", "--kv-heads", "4", *NEW)),
    "another vocabulary": Case(
        "--vocab-size is 300, but .* has 256", ("--init-from", "gpt-hf", "--vocab-size", "300", *NEW)
    ),
    "other hidden units": Case("--hidden is 8, but .* has 16", ("--init-from", "RUN", "--hidden", "8", *NEW)),
    "another table": Case(
        "features is 64, the data has 30", ("--init-from", "RUN", "--dataset", "breast_cancer", *NEW)
    ),
    "another kind of tokenizer": Case(
        "--tokenizer is bytes, but the model in BPE has bpe", ("--init-from", "BPE", "--tokenizer", "bytes", *NEW)
    ),
    "bytes that became BPE": Case(
        "--tokenizer is bpe, but the model in gpt-hf has bytes", ("--init-from", "gpt-hf", *BPE, *NEW)
    ),
    "another BPE": Case(
        "--bpe-vocab-size is 300, but the tokenizer in BPE has 270 tokens",
        ("--init-from", "BPE", "--bpe-vocab-size", "300", *NEW),
    ),
    "no tokenizer": Case(
        "no-tokenizer has no tokenizer.json", ("--init-from", "no-tokenizer", *NEW), with_other_tokenizer
    ),
    "another preset": Case(
        "--preset parity has --d-model 128, the model in gpt-hf 32",
        ("--init-from", "gpt-hf", "--preset", "parity", *NEW),
    ),
    "a preset of another model": Case(
        "RUN holds a model of mlp, not of gpt; leave --preset out", ("--init-from", "RUN", "--preset", "parity", *NEW)
    ),
    "weights of another shape": Case(
        "c_k.weight has shape .16, 32., the configuration asks for .8, 32.",
        ("--init-from", "other-shape", "--data", "words.txt", *NEW),
        with_weights_of_another_shape,
    ),
    "a run of the other framework": Case("OTHER is a run of .*parity convert", ("--init-from", "OTHER", *TABLE, *NEW)),
    "torn weights": Case(
        "model.safetensors cannot be read",
        ("--init-from", "gpt-hf", "--data", "words.txt", *NEW),
        put("gpt-hf/model.safetensors", b"torn"),
    ),
    "a run that is there": Case(
        "--init-from begins a new run, and RUN holds one", ("mlp", "--resume", "--out-dir", "RUN", "--init-from", "RUN")
    ),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_a_run_cannot_begin_with_is_refused_in_one_line(
    case, framework, place, tmp_path, monkeypatch, capsys
):
    shutil.copytree(place, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    other = FRAMEWORKS[1 - FRAMEWORKS.index(framework)]
    names = {"RUN": f"{framework}-mlp", "BPE": f"{framework}-embedding", "OTHER": f"{other}-mlp"}

    def fill(word: str) -> str:
        for name, run in names.items():
            word = word.replace(name, run)
        return word

    REFUSED[case].prepare(tmp_path / "place")
    argv = [fill(word) for word in REFUSED[case].argv]
    assert_refused(tmp_path / "place", framework, argv, fill(REFUSED[case].says), capsys)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_imported_model_is_not_trained_on_data_that_nobody_named(framework, here, tmp_path, capsys):
    run = tmp_path / "run"
    convert(Path("gpt-safetensors"), run, None, framework, None)
    argv = ["--resume", "--out-dir", str(run)]
    says = f"the model in {run} was imported and has no data; pass --data, or --init-from {run} for a new run"
    assert_refused(tmp_path, framework, argv, says, capsys)
    if framework == "jax":
        return  # XLA takes seconds to compile what follows, and twinstep decides it
    assert train(framework, [*argv, "--data", "words.txt", "--eval-batches", "8"]) == 0
    shutil.rmtree(run / "checkpoints" / "20")
    assert train(framework, argv) == 0
    assert read_run_config(run).data.data == "words.txt"


def test_an_imported_model_of_a_table_names_its_data_itself(here, tmp_path):
    convert(Path("torch-mlp"), tmp_path / "plain", None, "safetensors", None)
    convert(tmp_path / "plain", tmp_path / "run", None, "torch", None)
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == {}
    assert train("torch", ["mlp", "--resume", "--out-dir", str(tmp_path / "run")]) == 0


def test_a_converted_run_keeps_its_data(here, tmp_path):
    convert(Path("jax-embedding"), tmp_path / "run", None, None, None)
    argv = ["embedding", "--resume", "--out-dir", str(tmp_path / "run"), "--extend-to", "4"]
    assert train("torch", argv) == 0


def test_a_tokenizer_of_hugging_faces_that_is_plain_bytes_is_bytes(here):
    assert os.path.exists("gpt-hf/tokenizer.json")
    assert parse_train_config("train", ["--init-from", "gpt-hf"], "jax").data.tokenizer == "bytes"
    bpe = train_bpe(["some words and more words"] * 3, 256 + 1)
    assert byte_tokenizer(bpe.text) is None
