"""From files to the token stream: formats, split, BOS tokens, the default corpus."""

import gzip
import hashlib
import os
import sysconfig
import tokenize
from pathlib import Path

import pytest

from tests.helpers import corpora
from twinstep.data.documents import CHUNK


def stdlib_files() -> list[Path]:
    """The default corpus by another way than the loader's."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts)]
    return sorted(path for path in files if "__pycache__" not in path.parts)


def decoded(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def test_the_default_corpus_is_the_standard_library_with_every_20th_file_held_out():
    data = corpora.load(None, sequence_len=64)
    files = stdlib_files()
    texts = [decoded(path) for path in files]
    assert data.summary["files"] == len(files)
    assert data.summary["bytes"] == sum(path.stat().st_size for path in files)
    content = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    assert data.summary["sha256"] == content.hexdigest()
    held_out, trained = texts[19::20], [text for i, text in enumerate(texts) if i % 20 != 19]
    assert corpora.validation_stream(data) == corpora.stream_of(held_out)
    stream = bytes(corpora.stream_of(trained))
    assert data.summary["train"] == {
        "documents": len(trained),
        "bytes": len(stream) - len(trained),
        "tokens": len(stream),
    }
    batch = data.train.batch(3)
    for tokens, targets in zip(batch["tokens"][0], batch["targets"][0], strict=True):
        assert bytes([*tokens, targets[-1]]) in stream


def test_the_gzip_baseline_is_that_of_the_validation_text():
    data = corpora.load(None, sequence_len=64)
    text = "".join(decoded(path) for path in stdlib_files()[19::20]).encode()
    expected = 8 * len(gzip.compress(text, 9)) / len(text)
    assert data.validation_gzip_bits_per_byte() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"tokenizer": "bpe", "bpe_vocab_size": 300}], ids=["bytes", "bpe"])
def test_txt_jsonl_gzip_and_parquet_give_one_stream(tmp_path, options):
    texts = corpora.documents(45)
    texts[3] = "a line that is long\n" * (2 * CHUNK // 20)  # more than one chunk
    texts[41] = "世" * (CHUNK + 5)  # no line end to cut at, a chunk's end within a character
    loaded = [
        corpora.load(corpora.write(tmp_path / name, texts), sequence_len=512, **options)
        for name in ("folder", "lines.jsonl", "packed.jsonl.gz", "rows.parquet")
    ]
    streams = [corpora.validation_stream(data) for data in loaded]
    rows = [corpora.training_rows(data) for data in loaded]
    assert streams[0] == streams[1] == streams[2] == streams[3]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert loaded[0].validation.batches > 0
    if not options:
        assert streams[0] == corpora.stream_of(texts[19::20])


def test_files_are_taken_in_the_order_of_their_paths_and_unknown_ones_left_alone(tmp_path):
    texts = corpora.documents(25)
    order = ["a/z.txt", "a-b.md", "a.txt", "b.py", *(f"c/{i:03d}.txt" for i in range(21))]
    root = tmp_path / "corpus"
    for name, text in reversed(list(zip(order, texts, strict=True))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / ".hidden.txt").write_text("hidden")
    (root / ".git").mkdir()
    (root / ".git" / "x.txt").write_text("hidden")
    data = corpora.load(root)
    by_path = [path.relative_to(root).as_posix() for path in sorted(root / name for name in order)]
    expected = texts[order.index(by_path[19])]
    assert data.summary["files"] == 25
    assert corpora.validation_stream(data) == corpora.stream_of([expected])


def test_few_files_with_many_documents_hold_out_every_20th_document(tmp_path):
    texts = corpora.documents(50)
    root = tmp_path / "corpus"
    root.mkdir()
    corpora.write(root / "a.jsonl", texts[:15])
    corpora.write(root / "b.parquet", texts[15:])
    data = corpora.load(root)
    assert corpora.validation_stream(data) == corpora.stream_of(texts[19::20])
    assert data.summary["train"]["documents"] == 48


def test_many_files_hold_out_every_20th_file_with_all_its_documents(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    groups = [corpora.documents(3, seed=i) for i in range(41)]
    for i, group in enumerate(groups):
        corpora.write(root / f"{i:02d}.jsonl", group)
    assert corpora.validation_stream(corpora.load(root)) == corpora.stream_of(groups[19] + groups[39])


@pytest.mark.parametrize(
    ("text", "held_out"),
    [
        ("a line of text\n" * 400, "a line of text\n" * 20),  # the cut is at a line's beginning: the next line
        ("0123456789" * 400, "0123456789" * 20),  # no line end: exactly the last twentieth
        ("\n" + "0123456789" * 400, None),  # the only line end lies before the cut
        ("世界" * 1000 + "x", None),  # the cut falls inside a character
        ("first\n" * 60_000, None),  # several chunks
        ("世" * 150_000, None),
        ("x" * (20 * CHUNK), "x" * CHUNK),  # the cut falls between two chunks
    ],
    ids=["lines", "no-lines", "early-line", "wide-characters", "long-lines", "long-wide", "between-chunks"],
)
def test_one_text_holds_out_its_last_twentieth(tmp_path, text, held_out):
    path = tmp_path / "book.txt"
    path.write_bytes(text.encode())
    data = corpora.load(path, sequence_len=16 if len(text) < 10_000 else 512)
    stream = bytes(corpora.validation_stream(data))
    found = stream[1:].decode()
    assert stream[0] == 255
    assert text.endswith(found)
    assert abs(len(found.encode()) - len(text.encode()) / 20) <= 16
    if "\n" in text[1:]:
        assert text[: len(text) - len(found)].endswith("\n")
    assert data.summary["train"]["bytes"] == len(text.encode()) - len(found.encode())
    assert data.summary["train"]["documents"] == data.summary["validation"]["documents"] == 1
    trained = bytes(corpora.stream_of([text[: len(text) - len(found)]]))
    assert all(bytes(row) in trained for row in corpora.training_rows(data)[:50])
    if held_out is not None:
        assert abs(len(found) - len(held_out)) <= 15


def test_a_few_documents_hold_out_the_last_twentieth_of_each(tmp_path):
    texts = [f"line {i} of a text\n" * 100 for i in range(10)]
    one = corpora.load(corpora.write(tmp_path / "folder", texts))
    other = corpora.load(corpora.write(tmp_path / "lines.jsonl", texts))
    assert corpora.validation_stream(one) == corpora.validation_stream(other)
    expected = [f"line {i} of a text\n" * 5 for i in range(10)]
    found = bytes(corpora.validation_stream(one)).split(b"\xff")[1:]
    assert len(found) == 10
    for piece, whole in zip(found, expected, strict=True):
        assert whole.encode().endswith(piece)
        assert len(whole) - len(piece) <= 18


@pytest.mark.parametrize("count", [1, 7, 30], ids=["one", "few", "many"])
def test_no_held_out_text_is_trained_on(tmp_path, count):
    texts = ["".join(f"{i}:{line}\n" for line in range(4000 // count)) for i in range(count)]
    data = corpora.load(corpora.write(tmp_path / "folder", texts), sequence_len=8, batch_size=1)
    held_out = set(bytes(corpora.validation_stream(data)).replace(b"\xff", b"").splitlines(keepends=True))
    train = bytes(
        token for row in range(data.train.examples) for token in _row(data, row)
    )  # put in order below by the lines themselves
    seen = {line + b"\n" for line in train.replace(b"\xff", b"").split(b"\n")}
    every = {line.encode() for text in texts for line in text.splitlines(keepends=True)}
    assert held_out
    assert not held_out & seen
    assert held_out <= every


def _row(data, row: int) -> list[int]:
    stream = data.train.stream.open()
    return stream[8 * row : 8 * row + 8].tolist()


def test_bpe_is_trained_on_no_held_out_text(tmp_path):
    texts = ["trained " * 50] * 40
    texts[19] = texts[39] = "WQ" * 500
    data = corpora.load(corpora.write(tmp_path / "folder", texts), tokenizer="bpe", bpe_vocab_size=300)
    assert len(data.tokenizer.encode("trained")) == 1
    assert len(data.tokenizer.encode("WQWQ")) == 4


def test_python_files_are_decoded_as_they_declare(tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "latin.py").write_bytes("# -*- coding: latin-1 -*-\r\nx = 'café'\r\n".encode("latin-1") * 20)
    (root / "mark.py").write_bytes(b"\xef\xbb\xbf" + "y = 'ß'\n".encode() * 20)
    data = corpora.load(root, sequence_len=4, batch_size=1)
    ids = data.train.stream.open()[:].tolist()
    assert ids[: len("# -*- coding: latin-1 -*-\nx = 'café'\n".encode()) + 1] == corpora.stream_of(
        ["# -*- coding: latin-1 -*-\nx = 'café'\n"]
    )
    second = ids.index(255, 1)
    assert bytes(ids[second + 1 : second + 10]) == "y = 'ß'\n".encode()


def test_texts_may_carry_a_byte_order_mark_and_any_line_ends(tmp_path):
    text = "one\r\ntwo\rthree\n" * 40
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.txt").write_bytes(text.encode())
    one, other = corpora.load(tmp_path / "a.txt"), corpora.load(tmp_path / "b.txt")
    assert corpora.validation_stream(one) == corpora.validation_stream(other)
    assert corpora.training_rows(one) == corpora.training_rows(other)


def test_the_bos_token_begins_every_document_and_occurs_nowhere_else(tmp_path):
    texts = corpora.documents(40)
    data = corpora.load(corpora.write(tmp_path / "rows.parquet", texts))
    ids = data.train.stream.open()[:].tolist()
    starts, position = [], 0
    for i, text in enumerate(texts):
        if i % 20 != 19:
            starts.append(position)
            position += 1 + len(text.encode())
    assert [i for i, id in enumerate(ids) if id == 255] == starts
    assert len(ids) == position


def test_a_folder_is_read_through_a_link_and_links_inside_to_folders_are_not(tmp_path):
    real = corpora.write(tmp_path / "real", corpora.documents(22))
    os.symlink(tmp_path, real / "loop")
    os.symlink(real, tmp_path / "link")
    assert corpora.load(tmp_path / "link").summary["files"] == 22
