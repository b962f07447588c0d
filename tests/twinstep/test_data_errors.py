"""Bad input: one line that says what is wrong, in which file, and how to mend it."""

import json
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import corpora
from twinstep.config import Config, CorpusConfig, EmbeddingConfig, GPTConfig, LinearConfig, TabularConfig, TrainConfig
from twinstep.data import load_data
from twinstep.errors import UserError

GOOD = '{"text": "a line of text"}\n'


def refused(path: Path | None, message: str, **options) -> None:
    with pytest.raises(UserError) as error:
        corpora.load(path, **options)
    assert re.search(message, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_missing_path_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere' does not exist; pass")
    refused(Path("x" * 300), "cannot read --data x+: File name too long")


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(UserError, match="--data '' does not exist"):
        load_data(Config(EmbeddingConfig(), CorpusConfig(data="")))


def test_a_file_of_an_unknown_kind_is_named(tmp_path):
    (tmp_path / "table.csv").write_text("a,b")
    refused(
        tmp_path / "table.csv",
        r"table\.csv is of an unknown kind; known are \.txt \.md \.py \.jsonl \.jsonl\.gz \.parquet",
    )


def test_a_folder_without_texts_is_named(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"")
    refused(tmp_path, r"holds no files of \.txt")


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    refused(tmp_path / "pipe.txt", "neither a file nor a folder")
    refused(tmp_path, "holds no files of")  # a pipe in a folder is no text, and reading it would wait for ever


def test_an_unreadable_file_is_named(tmp_path):
    os.symlink("/proc/self/mem", tmp_path / "memory.txt")  # its first page cannot be read, even by root
    refused(tmp_path / "memory.txt", r"cannot read .*memory\.txt: .*; mend it or pass other --data")
    refused(tmp_path, r"cannot read .*memory\.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "secret.txt").write_text("text")
    (tmp_path / "secret.txt").chmod(0)
    refused(tmp_path / "secret.txt", r"cannot read .*secret\.txt: Permission denied")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.jsonl"])
def test_an_empty_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, rf"{name} holds no text; pass --data")


def test_a_corpus_of_empty_documents_is_named(tmp_path):
    refused(corpora.write(tmp_path / "corpus", [""] * 30), "corpus holds no text")
    refused(corpora.write(tmp_path / "lines.jsonl", [""] * 30), r"lines\.jsonl holds no text")
    refused(corpora.write(tmp_path / "rows.parquet", [""] * 30), r"rows\.parquet holds no text")


def test_an_empty_validation_part_is_named(tmp_path):
    texts = ["some text, long enough\n" * 20] * 25
    texts[19] = ""
    refused(corpora.write(tmp_path / "corpus", texts), "has no validation text: every 20th")


def test_a_corpus_smaller_than_a_batch_is_named_with_both_sizes(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 100)  # 95 for training and the BOS token
    refused(tmp_path / "a.txt", r"has 96 training tokens, one batch needs 97; lower --batch-size", batch_size=6)
    assert corpora.load(tmp_path / "a.txt", batch_size=5).train.batches == 1


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.jsonl"])
@pytest.mark.parametrize("offset", [0, 5, 70_001, 65_535, 65_537])
def test_text_that_is_not_utf8_is_named_with_the_offset(tmp_path, name, offset):
    raw = bytearray(GOOD.encode() * 4000)
    raw[offset] = 0xE9  # é in Latin-1
    (tmp_path / name).write_bytes(raw)
    refused(tmp_path / name, rf"{name} is not UTF-8 text: the byte at offset {offset} does not fit")


def test_a_character_cut_off_at_the_end_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 999 + "é".encode()[:1])
    refused(tmp_path / "a.txt", "the byte at offset 999 does not fit")


def test_the_bad_file_among_many_is_named(tmp_path):
    folder = corpora.write(tmp_path / "corpus", corpora.documents(30))
    (folder / "0017.txt").write_bytes(b"caf\xe9")
    refused(folder, r"0017\.txt is not UTF-8 text: the byte at offset 3")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("# coding: no-such-encoding", "unknown encoding"),
        ("# coding: rot13", "not a text encoding"),
        ("# coding: ascii", "ordinal not in range"),
        ("# coding: raw_unicode_escape", "surrogates not allowed"),
    ],
)
def test_python_source_that_cannot_be_decoded_is_named(tmp_path, head, reason):
    (tmp_path / "a.py").write_bytes((head + "\nx = 'é \\ud800'\n").encode() * 20)
    refused(tmp_path / "a.py", rf"a\.py cannot be decoded as Python source \(.*{reason}.*\); convert")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "cut off', "is not JSON"),
        ("plain text", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5000, "is not JSON"),
        ('{"id": 3}', 'has no string under "text"'),
        ('{"text": null}', 'has no string under "text"'),
        ('{"text": ["a"]}', 'has no string under "text"'),
        ('["text"]', 'has no string under "text"'),
        ("3", 'has no string under "text"'),
        (r'{"text": "\ud800"}', "has half a surrogate pair"),
    ],
)
def test_a_bad_line_of_jsonl_is_named_with_its_number(tmp_path, line, reason):
    (tmp_path / "lines.jsonl").write_text(GOOD * 6 + "\n" + line + "\n" + GOOD * 30)
    refused(tmp_path / "lines.jsonl", rf"lines\.jsonl:8 {reason}")


def test_empty_lines_of_jsonl_are_no_documents(tmp_path):
    (tmp_path / "lines.jsonl").write_text("\n" + (GOOD + "  \n\n") * 40)
    data = corpora.load(tmp_path / "lines.jsonl")
    assert data.summary["train"]["documents"] + data.summary["validation"]["documents"] == 40


def write_table(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_parquet_file_without_text_is_named_with_its_columns(tmp_path):
    path = write_table(tmp_path / "a.parquet", content=["x"], id=[1])
    refused(path, r'a\.parquet has no one column "text", but content, id; pass --text-key')


@pytest.mark.parametrize("values", [[1, 2], [b"x", b"y"], [["x"], ["y"]], [{"text": "x"}, {"text": "y"}]])
def test_a_text_column_of_another_type_is_named(tmp_path, values):
    refused(write_table(tmp_path / "a.parquet", text=values), r'a\.parquet: column "text" holds .*, not strings')


def test_a_row_without_text_is_named(tmp_path):
    path = write_table(tmp_path / "a.parquet", text=["x"] * 100 + [None])
    refused(path, r'a\.parquet: row 100 has no "text"')


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_string_is_read(tmp_path, kind):
    texts = corpora.documents(40)
    path = write_table(tmp_path / "a.parquet", text=pa.array(texts).cast(kind))
    assert corpora.validation_stream(corpora.load(path)) == corpora.stream_of(texts[19::20])


def test_text_in_parquet_that_is_not_utf8_is_named(tmp_path):
    raw = pa.array([b"good"] * 70 + [b"caf\xe9"])
    strings = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    refused(write_table(tmp_path / "a.parquet", text=strings), r"a\.parquet: the text from row 64 on is not UTF-8")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_cut_parquet_file_is_named(tmp_path, share):
    path = corpora.write(tmp_path / "a.parquet", corpora.documents(60))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, r"a\.parquet is not a valid parquet file \(.*\); write it again")


def test_a_file_that_only_calls_itself_parquet_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("text\n" * 100)
    refused(tmp_path / "a.parquet", r"a\.parquet is not a valid parquet file")


def test_flipped_bits_in_parquet_end_in_one_line_or_in_text(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": corpora.documents(60)}), path, write_page_checksum=True)
    content = path.read_bytes()
    draw = random.Random(0)
    refusals = []
    for _ in range(60):
        raw = bytearray(content)
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        try:
            corpora.load(path, cache_dir=str(tmp_path / "cache"))
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 30
    assert all("a.parquet" in line and "\n" not in line for line in refusals)


def test_a_tokenizer_of_another_vocabulary_is_named_with_both_sizes(tmp_path):
    folder = corpora.write(tmp_path / "corpus", corpora.documents(40))
    corpora.load(folder, tokenizer="bpe", bpe_vocab_size=300).tokenizer.save(tmp_path / "tokenizer.json")
    for wanted in (299, 301, 4096):
        config = corpora.config(folder, tokenizer="bpe", bpe_vocab_size=wanted)
        with pytest.raises(UserError, match=rf"tokenizer\.json has 300 tokens, --bpe-vocab-size is {wanted}"):
            load_data(config, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"--tokenizer is bytes, but there is a BPE tokenizer"):
        load_data(corpora.config(folder), tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*nowhere"):
        load_data(corpora.config(folder, tokenizer="bpe"), tmp_path / "nowhere")


def test_a_corpus_with_too_few_words_keeps_its_smaller_vocabulary_on_resume(tmp_path):
    folder = corpora.write(tmp_path / "corpus", ["only a few words\n" * 30] * 25)
    config = corpora.config(folder, tokenizer="bpe", bpe_vocab_size=4096)
    first = load_data(config)
    assert first.tokenizer.vocab_size < 300
    assert first.summary["vocab_size"] == first.tokenizer.vocab_size
    first.tokenizer.save(tmp_path / "tokenizer.json")
    assert load_data(config, tmp_path / "tokenizer.json").tokenizer.identity == first.tokenizer.identity


def test_sizes_of_the_model_that_do_not_fit_the_data_are_named(tmp_path):
    folder = corpora.write(tmp_path / "corpus", corpora.documents(40))
    text, train = CorpusConfig(data=str(folder), sequence_len=16), TrainConfig(batch_size=4)
    with pytest.raises(UserError, match=r"--vocab-size is 255, the tokenizer has 256 tokens"):
        load_data(Config(EmbeddingConfig(vocab_size=255), text, train=train))
    assert load_data(Config(EmbeddingConfig(vocab_size=300), text, train=train)).tokenizer.vocab_size == 256
    with pytest.raises(UserError, match=r"--features is 63, the data has 64"):
        load_data(Config(LinearConfig(features=63), TabularConfig()))
    with pytest.raises(UserError, match=r"--classes is 11, the data has 10"):
        load_data(Config(LinearConfig(classes=11), TabularConfig()))
    with pytest.raises(UserError, match="gpt cannot be trained on a table"):
        load_data(Config(GPTConfig(), TabularConfig()))
    with pytest.raises(UserError, match="linear cannot be trained on text"):
        load_data(Config(LinearConfig(), text))


def test_a_batch_larger_than_the_table_is_named():
    config = Config(LinearConfig(), TabularConfig(), train=TrainConfig(batch_size=1438))
    with pytest.raises(UserError, match="--batch-size 1438 is more than the 1437 training examples of digits"):
        load_data(config)


def test_nothing_is_left_in_the_cache_by_a_failure(tmp_path):
    folder = corpora.write(tmp_path / "corpus", corpora.documents(30))
    (folder / "0029.txt").write_bytes(b"\xff")
    cache = tmp_path / "cache"
    refused(folder, "0029", cache_dir=str(cache))
    assert not list(cache.iterdir())


def test_the_summary_is_plain_json(tmp_path):
    folder = corpora.write(tmp_path / "corpus", corpora.documents(30))
    for config in (corpora.config(folder), Config(LinearConfig(), TabularConfig())):
        summary = load_data(config).summary
        assert json.loads(json.dumps(summary)) == summary
