"""The cache of tokenized corpora: reused, told apart, repaired, shared, done without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import corpora
from twinstep.data import corpus as corpus_module
from twinstep.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return corpora.write(tmp_path / "corpus", corpora.documents(40))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def load(folder, cache, **options):
    return corpora.load(folder, cache_dir=str(cache), **options)


def forbid_writing(monkeypatch):
    def refuse(*_):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(corpus_module, "write_entry", refuse)
    monkeypatch.setattr(corpus_module, "train_bpe", refuse)


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "bpe_vocab_size": 300}], ids=["bytes", "bpe"])
def test_the_second_load_reads_what_the_first_wrote(folder, cache, monkeypatch, options):
    first = load(folder, cache, **options)
    forbid_writing(monkeypatch)
    second = load(folder, cache, **options)
    assert first.summary == second.summary
    assert corpora.training_rows(first) == corpora.training_rows(second)
    assert second.train.stream.path.parent.parent == cache
    assert not list(cache.glob("unfinished*"))


def test_a_resumed_run_finds_the_corpus_tokenized_by_its_tokenizer(folder, cache, tmp_path, monkeypatch):
    options = {"tokenizer": "bpe", "bpe_vocab_size": 300}
    first = load(folder, cache, **options)
    first.tokenizer.save(tmp_path / "tokenizer.json")
    forbid_writing(monkeypatch)
    config = corpora.config(folder, cache_dir=str(cache), **options)
    second = corpora.load_data(config, tmp_path / "tokenizer.json")
    assert corpora.training_rows(first) == corpora.training_rows(second)


@pytest.mark.parametrize("change", ["content", "another tokenizer", "another kind", "another border"])
def test_another_corpus_or_tokenizer_is_another_entry(folder, cache, change):
    before = load(folder, cache)
    options = {}
    if change == "content":
        file = folder / "0003.txt"
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    elif change == "another tokenizer":
        options = {"tokenizer": "bpe", "bpe_vocab_size": 300}
    elif change == "another kind":
        for file in folder.iterdir():
            file.rename(file.with_suffix(".md"))
    else:  # the same bytes one after another, cut into files elsewhere
        one, two = folder / "0003.txt", folder / "0004.txt"
        both = one.read_bytes() + two.read_bytes()
        one.write_bytes(both[:20])
        two.write_bytes(both[20:])
    after = load(folder, cache, **options)
    assert before.train.stream.path != after.train.stream.path
    if change == "another border":
        assert before.summary["sha256"] == after.summary["sha256"]


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["removed", "cut", "emptied"])
def test_a_damaged_entry_is_made_again(folder, cache, name, damage):
    good = load(folder, cache)
    expected = corpora.training_rows(good), corpora.validation_stream(good)
    file = good.train.stream.path.with_name(name)
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -1 if damage == "cut" else 0])
    again = load(folder, cache)
    assert (corpora.training_rows(again), corpora.validation_stream(again)) == expected
    assert again.train.stream.path == good.train.stream.path
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "content", ["[]", "null", '{"dtype": "<u1"}', '{"dtype": 3}', '{"dtype": "O", "train": {"tokens": 1}}']
)
def test_a_foreign_meta_file_is_replaced(folder, cache, content):
    good = load(folder, cache)
    good.train.stream.path.with_name("meta.json").write_text(content)
    assert load(folder, cache).summary == good.summary
    assert json.loads(good.train.stream.path.with_name("meta.json").read_text())["dtype"] == "|u1"


def test_a_damaged_cached_tokenizer_is_trained_again(folder, cache):
    options = {"tokenizer": "bpe", "bpe_vocab_size": 300}
    first = load(folder, cache, **options)
    (file,) = cache.glob("*.json")
    good = file.read_bytes()
    file.write_bytes(good[:100])
    second = load(folder, cache, **options)
    assert second.tokenizer.identity == first.tokenizer.identity
    assert file.read_bytes() == good


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "bpe_vocab_size": 300}], ids=["bytes", "bpe"])
def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, cache, options):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    data = load(folder, blocked / "cache", **options)
    assert corpora.training_rows(data) == corpora.training_rows(load(folder, cache, **options))
    assert blocked.read_text() == ""


def test_a_full_disk_is_named(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_module, "write_entry", full)
    with pytest.raises(UserError, match=r"No space left on device; pass --cache-dir"):
        load(folder, cache)


def test_the_default_cache_follows_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert corpora.load(folder).train.stream.path.is_relative_to(tmp_path / "xdg" / "twinstep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert corpora.load(folder).train.stream.path.is_relative_to(tmp_path / "home" / ".cache" / "twinstep")


def test_a_corpus_that_vanishes_under_a_run_is_named(folder, cache):
    data = load(folder, cache)
    data.train.stream.path.write_bytes(b"short")
    with pytest.raises(UserError, match=r"train\.bin was removed or cut"):
        data.train.batch(0)
    data.train.stream.path.unlink()
    with pytest.raises(UserError, match=r"train\.bin was removed or cut"):
        data.train.batch(0)


def test_a_file_that_grows_while_it_is_read_is_named(folder, cache, monkeypatch):
    read_split = corpus_module.read_split

    def growing(paths, text_key):
        yield from read_split(paths, text_key)
        with (folder / "0007.txt").open("a") as file:
            file.write("more")

    monkeypatch.setattr(corpus_module, "read_split", growing)
    with pytest.raises(UserError, match=r"0007\.txt changed while it was read"):
        load(folder, cache)
    assert not list(cache.iterdir())


def test_processes_that_start_together_share_one_entry(folder, cache):
    code = (
        "import sys; from tests.helpers import corpora\n"
        "from pathlib import Path\n"
        "data = corpora.load(Path(sys.argv[1]), cache_dir=sys.argv[2])\n"
        "print(hash(tuple(corpora.validation_stream(data))), data.train.stream.path)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(cache)], stdout=subprocess.PIPE, env=environment, cwd=root
        )
        for _ in range(3)
    ]
    lines = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(lines) == 1
    assert len(list(cache.iterdir())) == 1
