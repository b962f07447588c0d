"""Bad input ends in one line that says what is wrong and how to mend it, exit code 2, and nothing overwritten."""

import gzip
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.refusals import GPT, NEW, Case, assert_refused, enter_copy, make_runs, put
from tests.helpers.trust import FRAMEWORKS
from torch_ref import parallel
from twinstep.config import (
    MODELS,
    CorpusConfig,
    DeviceConfig,
    OptimizerConfig,
    OutputConfig,
    TabularConfig,
    TrainConfig,
    flag,
)
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS

TEXT_MODELS = ("gpt", "embedding")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def place(runs, tmp_path, monkeypatch) -> Path:
    return enter_copy(runs, tmp_path / "place", monkeypatch)


def numeric_flags() -> list[tuple[str, str, float, float]]:
    """Model, field, lower and upper end of every number on the command line, each field once."""
    found: dict[str, tuple[str, str, float, float]] = {}
    for model, kind in MODELS.items():
        data = CorpusConfig if model in TEXT_MODELS else TabularConfig
        for part in (kind, data, OptimizerConfig, TrainConfig, DeviceConfig, OutputConfig):
            for name, bound in part.BOUNDS.items():
                key = f"{model} {name}" if part is kind else name
                found.setdefault(key, (model, name, bound.low, bound.high))
    return list(found.values())


def outside() -> list[tuple[str, str, str]]:
    """Model, flag and a value below or above its bounds, for every number on the command line."""
    cases = []
    for model, name, low, high in numeric_flags():
        whole = isinstance(low, int) and name not in FRACTIONAL
        cases.append((model, flag(name), str(low - 1) if whole else repr(low - 1e-9)))
        if high != float("inf"):
            cases.append((model, flag(name), str(high + 1) if whole else repr(high + 1e-9)))
        if not whole:
            cases += [(model, flag(name), "nan"), (model, flag(name), "inf")]
    return cases


# Fields of floating-point numbers: "nan" and "inf" are numbers to them, and their bounds are met in small steps.
FRACTIONAL = {
    name
    for kind in (*MODELS.values(), CorpusConfig, OptimizerConfig, TrainConfig)
    for name, hint in kind.__annotations__.items()
    if hint in (float, float | None)
}


@pytest.mark.parametrize(("model", "name", "value"), outside())
def test_a_number_outside_its_bounds_is_refused_by_name(model, name, value, place, capsys):
    says = (
        rf"{name} is {re.escape(str(float(value)) if name[2:].replace('-', '_') in FRACTIONAL else value)}; it must be"
    )
    assert_refused(place, "jax", [model, name, value, "--out-dir", "new"], says, capsys)


@pytest.mark.parametrize(("model", "name", "low", "high"), numeric_flags())
def test_a_number_at_its_bounds_is_within_them(model, name, low, high):
    data = CorpusConfig if model in TEXT_MODELS else TabularConfig
    kinds = (MODELS[model], data, OptimizerConfig, TrainConfig, DeviceConfig, OutputConfig)
    bound = next(kind.BOUNDS[name] for kind in kinds if name in kind.BOUNDS)
    assert bound.holds(low) != bound.open_low
    assert bound.holds(high) != (bound.open_high or high == float("inf"))


ON = (*GPT, "--out-dir", "new", "--data")

COMMON = {
    "unknown model": Case("unknown model 'gtp'; choose one of gpt, linear", ("gtp",)),
    "unknown flag": Case("[Uu]nrecognized.*--learning-rate", ("gpt", "--learning-rate", "1")),
    "flag of another model": Case("[Uu]nrecognized.*--depth", ("linear", "--depth", "2")),
    "flag without its value": Case("Missing value.*--steps", ("gpt", "--steps")),
    "words for a number": Case("--steps.*'many'", ("gpt", "--steps", "many")),
    "fraction for a whole number": Case("--steps.*'1.5'", ("gpt", "--steps", "1.5")),
    "number for a word": Case("--dtype.*float32", ("gpt", "--dtype", "16")),
    "unknown type": Case("float16.*--dtype.*bfloat16", ("gpt", "--dtype", "float16")),
    "unknown optimizer": Case("lion.*--optimizer.*adamw", ("gpt", "--optimizer", "lion")),
    "unknown data set": Case("iris.*--dataset.*digits", ("linear", "--dataset", "iris")),
    "unknown preset": Case("unknown preset 'd20' of gpt; choose one of parity", ("gpt", "--preset", "d20")),
    "preset of another model": Case("preset 'parity' of mlp; mlp has none", ("mlp", "--preset", "parity")),
    "head size that does not divide": Case("--head-dim 32 does not divide", ("gpt", "--d-model", "100")),
    "odd head size": Case("--head-dim is 9; .* even", ("gpt", "--head-dim", "9")),
    "key/value heads that do not divide": Case("--kv-heads 3 does not divide the 4", ("gpt", "--kv-heads", "3")),
    "batch that accumulation does not divide": Case(
        "--batch-size 8 is not divisible by --accumulation 3", ("gpt", "--accumulation", "3")
    ),
    "tokens that the sequence does not divide": Case(
        "--batch-tokens 100 is not a multiple of --sequence-len 16", (*GPT, "--batch-tokens", "100")
    ),
    "two horizons": Case(
        "--target-flops and --tokens-per-parameter both", ("gpt", "--target-flops", "1", "--tokens-per-parameter", "1")
    ),
    "horizon of less than a step": Case("shorter than one step", (*ON, "words.txt", "--target-flops", "1")),
    "rate that rises and falls at once": Case(
        "add to more than 1", ("gpt", "--warmup-fraction", "0.6", "--warmdown-fraction", "0.6")
    ),
    "steps to profile that are none": Case("--profile is 3; it must be FIRST:LAST", ("linear", "--profile", "3", *NEW)),
    "steps to profile before the first": Case("--profile is 0:2; it must be", ("linear", "--profile", "0:2", *NEW)),
    "steps to profile backwards": Case("--profile is 5:4; it must be", ("linear", "--profile", "5:4", *NEW)),
    "steps to profile past the last": Case(
        "--profile is 5:6, but the run has 5 steps", ("linear", "--steps", "5", "--profile", "5:6", *NEW)
    ),
    "one logit for ten classes": Case("--head sigmoid separates 2 classes", ("linear", "--head", "sigmoid", *NEW)),
    "classes that the data has not": Case("--classes is 7, the data has 10", ("linear", "--classes", "7", *NEW)),
    "features that the data has not": Case("--features is 7, the data has 64", ("linear", "--features", "7", *NEW)),
    "more examples than there are": Case(
        "--batch-size 5000 is more than the 1437", ("linear", "--batch-size", "5000", *NEW)
    ),
    "one example for BatchNorm": Case("BatchNorm needs 2 or more", ("mlp", "--batch-size", "1", *NEW)),
    "process beyond the last": Case(
        "--process-id is 3; .* at most 1", ("gpt", "--num-processes", "2", "--process-id", "3")
    ),
    "vocabulary below the tokenizer's": Case(
        "--vocab-size is 100, the tokenizer has", (*ON, "words.txt", "--vocab-size", "100")
    ),
    "data that is not there": Case("'nowhere.txt' does not exist", (*ON, "nowhere.txt")),
    "data of no name": Case("--data '' does not exist", (*ON, "")),
    "data of an unknown kind": Case("data.csv is of an unknown kind", (*ON, "data.csv"), put("data.csv", "a,b")),
    "folder without text": Case("holds no files of", (*ON, "empty"), lambda place: (place / "empty").mkdir()),
    "empty file": Case("empty.txt holds no text", (*ON, "empty.txt"), put("empty.txt", "")),
    "text of less than a batch": Case(
        "training tokens, one batch needs", (*ON, "short.txt"), put("short.txt", "word\n")
    ),
    "text that is not UTF-8": Case(
        "latin.txt is not UTF-8.* offset 3", (*ON, "latin.txt"), put("latin.txt", b"caf\xe9")
    ),
    "line that is not JSON": Case(
        "bad.jsonl:2 is not JSON", (*ON, "bad.jsonl"), put("bad.jsonl", '{"text": "a"}\n{"text": \n')
    ),
    "line without a text": Case(
        'bad.jsonl:1 has no string under "text"', (*ON, "bad.jsonl"), put("bad.jsonl", "[1]\n")
    ),
    "line with the text under another key": Case(
        'bad.jsonl:1 has no string under "text"; its keys are content; pass --text-key',
        (*ON, "bad.jsonl"),
        put("bad.jsonl", '{"content": "a"}\n'),
    ),
    "key that is empty": Case("--text-key is empty", ("gpt", "--text-key", "")),
    "key that is not UTF-8": Case("--text-key is not UTF-8", ("gpt", "--text-key", "\udce9")),
    "prompt that is not UTF-8": Case("--sample-prompt is not UTF-8", ("linear", "--sample-prompt", "\udce9")),
    "gzip that was cut": Case(
        "bad.jsonl.gz is not a whole gzip file",
        (*ON, "bad.jsonl.gz"),
        put("bad.jsonl.gz", gzip.compress(b'{"text": "a"}\n')[:-9]),
    ),
    "unknown tokenizer": Case(
        "--tokenizer is 'bpr'; choose bytes, bpe or the path of a tokenizer.json", ("gpt", "--tokenizer", "bpr")
    ),
    "tokenizer that is not there": Case(
        "cannot read the tokenizer mine.json: No such file", (*ON, "words.txt", "--tokenizer", "mine.json")
    ),
    "tokenizer without our BOS token": Case(
        "cannot use the tokenizer mine.json: it has no BOS token .*; pass the tokenizer.json of a run",
        (*ON, "words.txt", "--tokenizer", "mine.json"),
        put("mine.json", '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'),
    ),
    "size beside a tokenizer": Case(
        "--bpe-vocab-size is 300, but mine.json has its own size; leave it out",
        (*ON, "words.txt", "--tokenizer", "mine.json", "--bpe-vocab-size", "300"),
    ),
    "parquet that is none": Case(
        "bad.parquet is not a valid parquet", (*ON, "bad.parquet"), put("bad.parquet", "PAR1")
    ),
    "folder that is not empty": Case(
        "other is not empty .it holds notes",
        ("linear", "--out-dir", "other"),
        lambda place: ((place / "other").mkdir(), (place / "other" / "notes").touch()),
    ),
    "out-dir that is a file": Case("cannot write to words.txt", ("linear", "--out-dir", "words.txt")),
    "out-dir under a file": Case("cannot write to words.txt/run", ("linear", "--out-dir", "words.txt/run")),
    "out-dir where nothing can be": Case("cannot write to /proc/run", ("linear", "--out-dir", "/proc/run")),
    "resume of nothing": Case("no run in new.*--out-dir", ("linear", "--resume", *NEW)),
    "resume of the newest of none": Case("nothing to resume: no runs/.*-mlp-", ("mlp", "--resume")),
    "resume with no place": Case("no run in", ("linear", "--resume", "--out-dir")),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", COMMON)
def test_bad_input_is_refused_in_one_line(case, framework, place, capsys):
    COMMON[case].prepare(place)
    assert_refused(place, framework, list(COMMON[case].argv), COMMON[case].says, capsys)


def test_a_mode_that_one_process_cannot_run_is_refused(place, capsys, monkeypatch):
    assert_refused(place, "torch", ["linear", "--parallel", "pmap", *NEW], "--parallel pmap needs torchrun", capsys)
    assert_refused(
        place, "torch", ["linear", "--parallel", "fsdp", *NEW], "--parallel fsdp is only in jax_impl", capsys
    )
    monkeypatch.setattr(parallel, "shard", lambda: (0, 3))
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    linear = DEFAULTS["linear"]
    with pytest.raises(UserError, match=r"--batch-size 128 .* is not divisible by 3 processes"):
        parallel.choose_mode(linear)
    with pytest.raises(UserError, match="torchrun started 3"):
        parallel.choose_mode(replace(linear, devices=DeviceConfig(parallel="jit")))


def test_a_tracker_whose_package_is_missing_is_refused(place, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for framework in FRAMEWORKS:
        for extra in ("tensorboard", "wandb"):
            says = rf"which --{extra} needs: run pip install -e '\.\[{extra}\]' in {Path(__file__).parents[1]}"
            assert_refused(place, framework, ["linear", f"--{extra}", *NEW], says, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "argv", "says"),
    [
        ("jax_impl.train", ["gpt", "--steps", "0"], "--steps is 0; it must be at least 1"),
        ("torch_ref.train", ["gpt", "--learning-rate", "1"], "--learning-rate"),
        ("jax_impl.train", ["linear", "--batch-size", "3"], "is not divisible by 2 devices; pass a multiple of 2"),
        ("jax_impl.train", ["linear", "--parallel", "jit"], "there are 2; pass --parallel pmap"),
        ("jax_impl.plot", [], "no run to plot"),
        ("jax_impl.generate", ["--run", "nowhere"], "no run in nowhere"),
    ],
)
def test_a_real_process_says_one_line_and_exits_2(module, argv, says, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert says in process.stderr
    assert list(tmp_path.iterdir()) == []
