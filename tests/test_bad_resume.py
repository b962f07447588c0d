"""A resume that cannot go on as before ends in one line, exit code 2, and nothing overwritten."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.refusals import GPT, Case, assert_refused, enter_copy, make_runs
from tests.helpers.trust import FRAMEWORKS, write_corpus
from twinstep.cli import parse_train_config
from twinstep.config import to_dict
from twinstep.data.tokenizer import train_bpe
from twinstep.run_dir import lock_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def place(runs, tmp_path, monkeypatch) -> Path:
    return enter_copy(runs, tmp_path / "place", monkeypatch)


def edit(name: str, part: str, field: str, value: object) -> Callable[[Path], None]:
    """Change one field of a config.json."""

    def change(place: Path) -> None:
        values = json.loads((place / name).read_text())
        values[part][field] = value
        (place / name).write_text(json.dumps(values))

    return change


# RUN and BPE stand for the finished runs of the framework at hand, OTHER for the other framework's.
RESUMED = {
    "a run that is there": Case("RUN already holds a run; pass --resume", ("linear", "--out-dir", "RUN")),
    "another model": Case("RUN holds a run of linear, not of mlp", ("mlp", "--resume", "--out-dir", "RUN")),
    "another framework": Case("OTHER is a run of .*parity convert", ("linear", "--resume", "--out-dir", "OTHER")),
    "other steps": Case(
        "--steps is 3, but the run in RUN has 2", ("linear", "--resume", "--out-dir", "RUN", "--steps", "3")
    ),
    "another seed": Case("--seed is 1, but .* has 0", ("linear", "--resume", "--out-dir", "RUN", "--seed", "1")),
    "another rate": Case(
        "--matrix-lr is 0.5, but .* has 0.02", ("linear", "--resume", "--out-dir=RUN", "--matrix-lr", "0.5")
    ),
    "another type": Case(
        "--dtype is float64, but .* has float32", ("linear", "--resume", "--out-dir", "RUN", "--dtype", "float64")
    ),
    "another text key": Case(
        "--text-key is body, but the run in BPE has text",
        ("embedding", "--resume", "--out-dir", "BPE", "--text-key", "body"),
    ),
    "another tokenizer file": Case(
        "--tokenizer mine.json is not that of the run in BPE; leave the flag out",
        ("embedding", "--resume", "--out-dir", "BPE", "--tokenizer", "mine.json"),
        lambda place: train_bpe([text(place)], 269).save(place / "mine.json"),
    ),
    "another preset": Case(
        "--depth is 2, but .* has 1",
        ("gpt", "--resume", "--out-dir", "gpt", "--preset", "parity"),
        lambda place: (
            shutil.copytree(place / "jax-linear", place / "gpt"),
            (place / "gpt" / "config.json").write_text(json.dumps(tiny_gpt_config())),
        ),
    ),
    "other data": Case(
        "data has changed since the run in BPE.*sha256",
        ("embedding", "--resume", "--out-dir", "BPE", "--data", "more.txt"),
        lambda place: write_corpus(place / "more.txt", 9000),
    ),
    "data that changed in its place": Case(
        "data has changed since the run in BPE.*sha256",
        ("embedding", "--resume", "--out-dir", "BPE", "--data", "words.txt"),
        lambda place: write_corpus(place / "words.txt", 8001),
    ),
    "tokenizer of another vocabulary": Case(
        "tokenizer BPE/tokenizer.json has 29. tokens, --bpe-vocab-size is 270",
        ("embedding", "--resume", "--out-dir", "BPE"),
        lambda place: [
            train_bpe([text(place)], 300).save(place / f"{f}-embedding" / "tokenizer.json") for f in FRAMEWORKS
        ],
    ),
    "tokenizer of other tokens": Case(
        "BPE/tokenizer.json is not the one that the run began with",
        ("embedding", "--resume", "--out-dir", "BPE"),
        lambda place: [
            train_bpe([text(place)[::-1]], 270).save(place / f"{f}-embedding" / "tokenizer.json") for f in FRAMEWORKS
        ],
    ),
    "tokenizer whose tokens changed places": Case(
        "BPE/tokenizer.json is not the one that the run began with",
        ("embedding", "--resume", "--out-dir", "BPE"),
        lambda place: [swap_tokens(place / f"{f}-embedding" / "tokenizer.json") for f in FRAMEWORKS],
    ),
    "tokenizer that is damaged": Case(
        "cannot use the tokenizer BPE/tokenizer.json",
        ("embedding", "--resume", "--out-dir", "BPE"),
        lambda place: [(place / f"{f}-embedding" / "tokenizer.json").write_text("{}") for f in FRAMEWORKS],
    ),
    "config that is no JSON": Case(
        "RUN/config.json cannot be read",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [(place / f"{f}-linear" / "config.json").write_text("{") for f in FRAMEWORKS],
    ),
    "config of an unknown model": Case(
        "config names the model 'cnn'",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [(place / f"{f}-linear" / "config.json").write_text('{"model_name": "cnn"}') for f in FRAMEWORKS],
    ),
    "config with a field of another type": Case(
        "config has steps 'many'",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [edit(f"{f}-linear/config.json", "train", "steps", "many")(place) for f in FRAMEWORKS],
    ),
    "config with an unknown field": Case(
        "config part 'train' has missing or unknown fields.*'stepz'",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [edit(f"{f}-linear/config.json", "train", "stepz", 1)(place) for f in FRAMEWORKS],
    ),
    "config that was edited": Case(
        "RUN/config.json has seed 4, but its checkpoint was made with 0",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [edit(f"{f}-linear/config.json", "train", "seed", 4)(place) for f in FRAMEWORKS],
    ),
    "data.json that is damaged": Case(
        "RUN/data.json cannot be read",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [(place / f"{f}-linear" / "data.json").write_text("[]") for f in FRAMEWORKS],
    ),
    "checkpoint of another run": Case(
        "RUN/config.json has .*, but its checkpoint was made with|checkpoint of another run",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [
            (
                shutil.rmtree(place / f"{f}-linear" / "checkpoints"),
                shutil.copytree(place / f"{f}-embedding" / "checkpoints", place / f"{f}-linear" / "checkpoints"),
            )
            for f in FRAMEWORKS
        ],
    ),
    "checkpoint without its files": Case(
        "checkpoints/2 cannot be read: .*delete that folder to go back to step 1",
        ("linear", "--resume", "--out-dir", "RUN"),
        lambda place: [
            (shutil.rmtree(place / f"{f}-linear/checkpoints/2"), (place / f"{f}-linear/checkpoints/2").mkdir())
            for f in FRAMEWORKS
        ],
    ),
}


def text(place: Path) -> str:
    return (place / "words.txt").read_text(encoding="utf-8")


def swap_tokens(path: Path) -> None:
    """Exchange the ids of the last two tokens: every text still has as many tokens, but not the same ones."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    last, before = sorted(vocab, key=vocab.get)[-2:]
    vocab[last], vocab[before] = vocab[before], vocab[last]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def tiny_gpt_config() -> dict:
    return to_dict(parse_train_config("", [*GPT, "--out-dir", "gpt"], "jax"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", RESUMED)
def test_a_resume_that_cannot_be_is_refused_in_one_line(case, framework, place, capsys):
    other = FRAMEWORKS[1 - FRAMEWORKS.index(framework)]
    names = {"RUN": f"{framework}-linear", "BPE": f"{framework}-embedding", "OTHER": f"{other}-linear"}

    def fill(word: str) -> str:
        for name, run in names.items():
            word = word.replace(name, run)
        return word

    RESUMED[case].prepare(place)
    argv = [fill(word) for word in RESUMED[case].argv]
    assert_refused(place, framework, argv, fill(RESUMED[case].says), capsys)


def test_a_run_that_another_process_writes_is_refused(place, capsys):
    # The lock belongs to the open file, so a second one in this process stands for another process.
    for framework in FRAMEWORKS:
        shutil.rmtree(place / f"{framework}-linear" / "checkpoints" / "2")
        with lock_run(place / f"{framework}-linear"):
            argv = ["linear", "--resume", "--out-dir", f"{framework}-linear"]
            assert_refused(place, framework, argv, "another process is writing to", capsys)
