"""--tokenizer FILE: a user's own tokenizer.json begins a new run, which keeps a copy and no longer needs the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from tests.helpers import corpora
from twinstep.cli import parse_train_config, read_run_config
from twinstep.config import Config, CorpusConfig
from twinstep.data import load_data, load_tokenizer
from twinstep.data.tokenizer import BOS, BYTE_OF, train_bpe
from twinstep.errors import UserError
from twinstep.generation import tokenizer_of
from twinstep.resolve import fill_in
from twinstep.run_dir import check_data, create_run, write_run

FLAGS = ("gpt", "--sequence-len", "16", "--batch-size", "4", "--data", "corpus")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """A corpus, and a tokenizer of other texts with special tokens of its own, in the current folder."""
    monkeypatch.chdir(tmp_path)
    corpora.write(tmp_path / "corpus", corpora.documents(40))
    train_bpe(["words of another text, and of another\n"] * 9, 300).save(tmp_path / "plain.json")
    given = Tokenizer.from_file("plain.json")
    given.add_special_tokens([AddedToken("<|user_start|>", special=True), AddedToken("<|user_end|>", special=True)])
    given.save("mine.json")
    return tmp_path


def begin(*flags: str) -> Config:
    """A run in `run`, as a trainer begins one."""
    run = Path("run")
    config = parse_train_config("train", [*FLAGS, *flags, "--out-dir", "run"], "jax")
    data = load_data(config)
    config = fill_in(config, data)
    create_run(run)
    write_run(run, config, data.summary, data.tokenizer)
    check_data(run, data.summary)
    return config


def resume(*flags: str) -> Config:
    """The same run's configuration again, its data read with its own tokenizer."""
    run = Path("run")
    config = parse_train_config("train", [*FLAGS, *flags, "--resume", "--out-dir", "run"], "jax")
    data = load_data(config, run / "tokenizer.json")
    check_data(run, data.summary)
    return fill_in(config, data)


def test_the_run_keeps_a_copy_and_records_a_bpe_of_its_size(place):
    config = begin("--tokenizer", "mine.json")
    size = Tokenizer.from_file("mine.json").get_vocab_size()
    assert isinstance(config.data, CorpusConfig)
    assert (config.data.tokenizer, config.data.bpe_vocab_size, config.model.vocab_size) == ("bpe", size, size)
    assert read_run_config(Path("run")) == config
    assert (place / "run" / "tokenizer.json").read_bytes() == (place / "mine.json").read_bytes()
    summary = json.loads((place / "run" / "data.json").read_text())
    assert (summary["tokenizer"], summary["tokenizer_sha256"]) == ("bpe", load_tokenizer(Path("mine.json")).identity)


def test_special_tokens_of_the_file_are_tokens_and_no_text(place):
    config = begin("--tokenizer", "mine.json")
    tokenizer = tokenizer_of(config, Path("run"))
    vocab = Tokenizer.from_file("mine.json").get_vocab()
    assert vocab["<|user_start|>"] < tokenizer.vocab_size
    assert tokenizer.token_bytes[vocab["<|user_start|>"]] == tokenizer.token_bytes[vocab["<|user_end|>"]] == 0
    assert vocab["<|user_start|>"] not in tokenizer.encode("a text that quotes <|user_start|>")


@pytest.mark.parametrize("flags", [(), ("--tokenizer", "mine.json")], ids=["flag left out", "flag repeated"])
@pytest.mark.parametrize("gone", [False, True], ids=["file there", "file gone"])
def test_a_resume_uses_the_copy_whether_the_file_is_there_or_gone(place, flags, gone):
    config = begin("--tokenizer", "mine.json")
    if gone:
        (place / "mine.json").unlink()
    assert resume(*flags).data == config.data


def test_a_run_goes_on_with_its_copy_under_the_configuration_that_began_it(place):
    """As from Python, where the configuration of the beginning is passed again with `resume`."""
    recorded = begin("--tokenizer", "mine.json")
    (place / "mine.json").unlink()
    config = replace(recorded, data=replace(recorded.data, tokenizer="mine.json"))
    assert fill_in(config, load_data(config, Path("run", "tokenizer.json"))) == recorded


def test_a_resume_with_another_tokenizer_is_refused(place):
    begin("--tokenizer", "mine.json")
    with pytest.raises(UserError, match=r"--tokenizer plain\.json is not that of the run in run; leave the flag out"):
        resume("--tokenizer", "plain.json")
    with pytest.raises(UserError, match=r"--tokenizer is bytes, but the run in run has bpe"):
        resume("--tokenizer", "bytes")
    shutil.rmtree("run")
    begin()
    with pytest.raises(UserError, match=r"--tokenizer is mine\.json, but the run in run has bytes"):
        resume("--tokenizer", "mine.json")


def test_a_preset_may_be_repeated_at_a_resume_with_the_file(place):
    flags = ("--preset", "nanochat-d20", "--depth", "1", "--head-dim", "64", "--batch-tokens", "64")
    config = begin(*flags, "--tokenizer", "mine.json")
    assert resume(*flags, "--tokenizer", "mine.json").model == config.model


def test_the_tokenizer_is_there_before_the_run_is(place, monkeypatch):
    """A run killed while it was begun must not train a tokenizer of its own when it is resumed."""
    written = []
    monkeypatch.setattr("twinstep.run_dir.write_atomically", lambda path, content: written.append(path.name))
    config = parse_train_config("train", [*FLAGS, "--tokenizer", "mine.json", "--out-dir", "run"], "jax")
    data = load_data(config)
    create_run(Path("run"))
    monkeypatch.setattr(type(data.tokenizer), "save", lambda self, path: written.append(path.name))
    write_run(Path("run"), fill_in(config, data), data.summary, data.tokenizer)
    assert written == ["tokenizer.json", "config.json", "data.json"]


def test_a_tokenizer_without_our_bos_token_is_told_what_is_needed(place):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    bpe.save("gpt2.json")
    says = (
        r"gpt2\.json: it has no BOS token <\|bos\|>; pass the tokenizer\.json of a run, or another byte-level BPE with"
    )
    with pytest.raises(UserError, match=says):
        begin("--tokenizer", "gpt2.json")
    assert not Path("run").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\ufeff{", '{"model": null}'])
def test_a_file_that_is_no_tokenizer_is_named(content, place):
    Path("bad.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot use the tokenizer bad\.json: .*; pass the tokenizer\.json of a run"):
        begin("--tokenizer", "bad.json")


def test_a_file_that_is_not_there_is_named(place):
    with pytest.raises(UserError, match=r"cannot read the tokenizer nowhere\.json: No such file"):
        begin("--tokenizer", "nowhere.json")
    Path("folder.json").mkdir()
    with pytest.raises(UserError, match=r"cannot read the tokenizer folder\.json: Is a directory"):
        begin("--tokenizer", "folder.json")


def test_a_file_of_bytes_alone_is_sent_to_bytes(place):
    spec = json.loads(Path("plain.json").read_text())
    kept = [token for token in spec["model"]["vocab"] if token == BOS or (len(token) == 1 and BYTE_OF[token] != 0xFF)]
    spec["model"] |= {"merges": [], "vocab": {token: id for id, token in enumerate(kept)}}
    spec["added_tokens"][0]["id"] = kept.index(BOS)
    Path("bytes.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"bytes\.json has 256 tokens, all bytes; pass --tokenizer bytes"):
        begin("--tokenizer", "bytes.json")


@pytest.mark.parametrize("word", ["bpr", "", "BPE", "corpus", "mine.txt"])
def test_an_unknown_word_is_refused_with_the_choices(word):
    with pytest.raises(
        UserError, match=rf"--tokenizer is '{word}'; choose bytes, bpe or the path of a tokenizer\.json"
    ):
        begin("--tokenizer", word)


def test_a_size_beside_a_file_is_refused():
    for flags in (("--bpe-vocab-size", "4096"), ("--bpe-vocab-size=300",)):
        with pytest.raises(UserError, match=r"--bpe-vocab-size is \d+, but mine\.json has its own size; leave it out"):
            begin("--tokenizer", "mine.json", *flags)


def test_a_model_too_small_for_the_file_is_refused():
    with pytest.raises(UserError, match=r"--vocab-size is 256, the tokenizer has \d+ tokens"):
        begin("--tokenizer", "mine.json", "--vocab-size", "256")
