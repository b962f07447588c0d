"""Lines of JSON under gzip: found, read as a stream, the same documents; a damaged file in one line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from tests.helpers import corpora
from twinstep.data.documents import count_documents, read_documents
from twinstep.data.files import kind_of
from twinstep.errors import UserError


@pytest.fixture
def packed(tmp_path) -> Path:
    return corpora.write(tmp_path / "lines.jsonl.gz", corpora.documents(200))


def refused(path: Path, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        corpora.load(path)
    assert "\n" not in str(error.value)


def test_the_kind_of_a_file_is_the_end_of_its_name():
    names = {
        "a.JSONL.GZ": ".jsonl.gz",
        "v1.5.jsonl.gz": ".jsonl.gz",
        "v1.5.Txt": ".txt",
        "a.gz": ".gz",
        "a": "",
        "a.gz.txt": ".txt",
    }
    assert {name: kind_of(Path("some.where", name)) for name in names} == names


def test_a_folder_of_plain_and_packed_lines_is_one_corpus(tmp_path):
    texts = corpora.documents(60)
    for name in ("plain", "mixed"):
        (tmp_path / name).mkdir()
        corpora.write(tmp_path / name / "a.jsonl", texts[:30])
    corpora.write(tmp_path / "plain" / "b.jsonl", texts[30:])
    corpora.write(tmp_path / "mixed" / "b.jsonl.gz", texts[30:])
    plain, mixed = corpora.load(tmp_path / "plain"), corpora.load(tmp_path / "mixed")
    assert mixed.summary["files"] == 2
    assert corpora.training_rows(mixed) == corpora.training_rows(plain)
    assert corpora.validation_stream(mixed) == corpora.validation_stream(plain) == corpora.stream_of(texts[19::20])


def test_several_gzip_members_one_after_another_are_one_file(tmp_path):
    texts = corpora.documents(40)
    path = corpora.write(tmp_path / "a.jsonl.gz", texts[:25])
    path.write_bytes(path.read_bytes() + corpora.write(tmp_path / "b.jsonl.gz", texts[25:]).read_bytes())
    assert [chunk.text for chunk in read_documents(path, "text")] == texts


def test_documents_are_counted_up_to_the_limit(packed):
    assert count_documents(packed, "text", 20) == 20
    assert count_documents(packed, "text", 1000) == 200


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_cut_file_is_named(packed, share):
    content = packed.read_bytes()
    packed.write_bytes(content[: int(share * len(content))])
    refused(packed, r"lines\.jsonl\.gz is not a whole gzip file \(.*\); copy it again")


@pytest.mark.parametrize("damage", ["text", "flipped", "checksum", "appended"])
def test_a_damaged_file_is_named(packed, damage):
    content = bytearray(packed.read_bytes())
    if damage == "text":
        content = bytearray(b'{"text": "never compressed"}\n')
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    elif damage == "checksum":
        content[-5] ^= 1  # of the size; before it stands the CRC
    else:
        content += b"more"
    packed.write_bytes(content)
    refused(packed, r"lines\.jsonl\.gz is not a whole gzip file \(.+\); copy it again|is not UTF-8|is not JSON")


def test_a_damaged_file_leaves_nothing_in_the_cache(packed, tmp_path):
    packed.write_bytes(packed.read_bytes()[:-8])
    with pytest.raises(UserError, match="whole gzip"):
        corpora.load(packed, cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


def test_a_bad_line_is_named_by_its_number_in_the_text(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "good"}\n' * 6 + b"{\n"))
    refused(path, r"a\.jsonl\.gz:7 is not JSON")


def test_other_kinds_of_gzip_are_unknown(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))
    refused(tmp_path / "a.txt.gz", r"a\.txt\.gz is of an unknown kind; known are .*\.jsonl\.gz")
    refused(tmp_path, "holds no files of")


def test_a_packed_file_is_not_unpacked_at_once(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    line = json.dumps({"text": "a line of ordinary length, which repeats itself\n" * 20}) + "\n"
    with gzip.open(path, "wt") as file:
        file.writelines(line for _ in range(20_000))
    tracemalloc.start()
    try:
        size = sum(len(chunk.text) for chunk in read_documents(path, "text"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 20_000 * 960
    assert peak < 2**20, peak
