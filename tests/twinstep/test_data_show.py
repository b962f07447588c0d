"""`python -m twinstep.data` prints a batch of a run, or says in one line why it cannot."""

import re
from dataclasses import replace

import numpy as np
import pytest

from twinstep.config import Config, CorpusConfig, GPTConfig, MLPConfig, TabularConfig, TrainConfig
from twinstep.data import load_data
from twinstep.data.__main__ import main
from twinstep.data.show import ranges, readable
from twinstep.data.tokenizer import ByteTokenizer, train_bpe
from twinstep.errors import not_finite, run_command
from twinstep.resolve import fill_in
from twinstep.run_dir import write_run

TEXT = "".join(f"line {n} of a\ttext, über \x1b[2J\n" for n in range(200))


@pytest.fixture
def text_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(TEXT, encoding="utf-8")
    train = TrainConfig(batch_size=4, accumulation=2)
    data = CorpusConfig(data="words.txt", sequence_len=32, masked_targets=0.2)
    return record(Config(model=GPTConfig(depth=1, head_dim=64), data=data, train=train), tmp_path / "run")


def record(config, run):
    """A run as training leaves it before its first step, and its data."""
    data = load_data(config)
    run.mkdir()
    write_run(run, fill_in(config, data), data.summary, data.tokenizer)
    return run, data


def shown(capsys, *argv) -> list[str]:
    assert run_command(main, [str(word) for word in argv]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_text_batch_is_the_one_that_the_step_trains_on(text_run, capsys):
    run, data = text_run
    head, *lines = shown(capsys, "--run", run, "--batch", 5)
    assert head == f"{run}, batch 5, which step 6 trains on: 5 of epoch 0, 4 rows of words.txt"
    batch = data.train.batch(5)
    tokens, targets = (batch[name].reshape(4, 32) for name in ("tokens", "targets"))
    assert len(lines) == 8
    for row in range(4):
        assert lines[2 * row].startswith(f"row {row} (micro-step {row // 2}): ids {tokens[row].min()} to ")
        assert f"{(targets[row] >= 0).sum()} of 32 targets count" in lines[2 * row]
        assert lines[2 * row + 1] == "    " + readable(tokens[row], data.tokenizer)
    assert any(r"\n" in line for line in lines)
    assert not re.search(r"[\x00-\x1f]", "".join(lines)), "a control character reaches the terminal"


def test_one_row_is_shown_with_all_its_numbers(text_run, capsys):
    run, data = text_run
    _, about, _, tokens, targets = shown(capsys, "--run", run, "--batch", 5, "--row", 3)
    assert about.startswith("row 3 (micro-step 1): ")
    batch = data.train.batch(5)
    assert tokens == "    tokens: " + " ".join(map(str, batch["tokens"][1, 1]))
    assert targets == "    targets: " + " ".join(map(str, batch["targets"][1, 1]))


def test_a_validation_batch_counts_what_fills_it_up_as_ignored(text_run, capsys):
    run, data = text_run
    last = data.validation.batches - 1
    head, *lines = shown(capsys, "--run", run, "--batch", last, "--validation", "--row", 3)
    assert f"validation batch {last} of {last + 1}" in head
    expected = data.validation.batch(last)["targets"][3]
    assert lines[0].split("; ")[1].startswith(f"{(expected >= 0).sum()} of 32 targets count (ignored at ")


def test_a_tables_rows_are_shown_with_targets_numbers_and_dropout(tmp_path, capsys, monkeypatch):
    config = Config(
        model=MLPConfig(hidden=16, shared_dropout=True), data=TabularConfig(), train=TrainConfig(batch_size=4)
    )
    run, data = record(config, tmp_path / "run")
    batch = data.train.batch(7)
    lines = shown(capsys, "--run", run, "--batch", 7)[1:]
    for row in range(4):
        kept = batch["dropout_mask"][0, row].sum()
        target, largest = batch["targets"][0, row], batch["inputs"][0, row].max()
        assert lines[2 * row] == (
            f"row {row}: target {target}, 64 inputs from 0 to {largest:.4g}; dropout keeps {kept} of 16 units"
        )
        assert np.allclose(np.array(lines[2 * row + 1].split(), float), batch["inputs"][0, row], rtol=1e-3)
    spoiled = replace(data, train=replace(data.train, inputs=np.where(data.train.inputs == 1, np.nan, 0)))
    monkeypatch.setattr("twinstep.data.__main__.load_data", lambda *_: spoiled)
    assert "not finite at " in shown(capsys, "--run", run, "--batch", 7, "--row", 0)[1]


def test_special_tokens_are_named_and_places_are_put_together():
    for tokenizer in (ByteTokenizer(), train_bpe([TEXT], 270)):
        ids = np.concatenate([[tokenizer.bos], tokenizer.encode("a\nü"), [tokenizer.bos], tokenizer.encode("b")])
        assert readable(ids, tokenizer) == r"<|bos|>a\nü<|bos|>b"
        assert readable(ids[1:], tokenizer) == r"a\nü<|bos|>b"
    chat = ByteTokenizer("chat")
    ids = [chat.bos, chat.special["<|user_start|>"], *b"hi", chat.special["<|user_end|>"]]
    assert readable(np.array(ids), chat) == "<|bos|><|user_start|>hi<|user_end|>"
    assert ranges(np.array([0, 1, 2, 7, 9, 10])) == "0-2, 7, 9-10"
    assert ranges(np.arange(0, 20, 2)) == "0, 2, 4, 6, 8 and in 5 more places"


REFUSED = {
    "no run": (["--run", "nowhere"], "no run in nowhere"),
    "run left out": ([], "--run is missing"),
    "number below zero": (["--run", "run", "--batch", "-1"], "--batch is -1; it must be at least 0"),
    "no number": (["--run", "run", "--batch", "x"], "'x'"),
    "row past the batch": (["--run", "run", "--row", "4"], "--row is 4; a batch has rows 0 to 3"),
    "batch past the held-out data": (["--run", "run", "--validation", "--batch", "99"], "has batches 0 to "),
    "other data": (["--run", "run", "--data", "other.txt"], "the data has changed since the run in run began"),
    "data of a table": (["--run", "table", "--data", "other.txt"], "--data is for a run on text"),
    "imported": (["--run", "imported"], "imported has not been trained on any data yet"),
    "damaged": (["--run", "damaged"], "data.json cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shown_is_refused_in_one_line(case, text_run, tmp_path, capsys):
    (tmp_path / "other.txt").write_text(TEXT + "more", encoding="utf-8")
    config = Config(model=MLPConfig(), data=TabularConfig(), train=TrainConfig(batch_size=4))
    record(config, tmp_path / "table")
    for name, content in (("imported", "{}\n"), ("damaged", "{")):
        record(config, tmp_path / name)
        (tmp_path / name / "data.json").write_text(content, encoding="utf-8")
    capsys.readouterr()
    argv, says = REFUSED[case]
    assert run_command(main, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert (tmp_path / "imported" / "data.json").read_text() == "{}\n", "showing has written"


def test_data_that_was_moved_is_found_again(text_run, tmp_path, capsys):
    run, _ = text_run
    before = shown(capsys, "--run", run, "--batch", 1)
    (tmp_path / "words.txt").rename(tmp_path / "moved.txt")
    assert shown(capsys, "--run", run, "--batch", 1, "--data", "moved.txt")[1:] == before[1:]


def test_the_line_that_stops_a_run_names_the_command_that_shows_its_batch(text_run, capsys, tmp_path):
    run, _ = text_run
    message = str(not_finite(12, "the loss is nan", {"w": False}, [], run))
    command = re.search(r"number 11 \((python -m twinstep.data .*?)\)", message)
    assert command, message
    assert "which step 12 trains on" in shown(capsys, *command[1].split()[3:])[0]
    assert "'a b'" in str(not_finite(1, "", {}, [], tmp_path / "a b")).replace(f"{tmp_path}/a b", "a b")
    assert "twinstep.data" not in str(not_finite(12, "the validation loss is nan", {"w": False}, []))
