"""Documents from files: a .txt, .md or .py file, a line of .jsonl or .jsonl.gz, a row of .parquet.

A document comes in chunks of at most `CHUNK` characters, cut after a line end where there is one. The cuts depend
on the text alone, so that the same documents give the same tokens from any format. No format needs all of a
document, row group or file in memory at once (except .py files, and single rows and lines).
"""

import codecs
import gzip
import io
import json
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from twinstep.data.files import kind_of
from twinstep.errors import UserError, first_line

CHUNK = 2**16
ROWS = 64  # rows of a parquet file decoded at once


class Chunk(NamedTuple):
    """Part of a document's text; `first` is true for the chunk that begins the document (it may be empty)."""

    text: str
    first: bool


def read_documents(path: Path, text_key: str) -> Iterator[Chunk]:
    """The documents of one file. Raises UserError, naming the place, for anything that is not text.

    text_key: the key of a line of .jsonl, or the column of a .parquet file, that holds the text.
    """
    kind = kind_of(path)
    try:
        if kind == ".parquet":
            texts: Iterable[Iterable[str]] = ((text,) for text in _parquet_rows(path, text_key))
        elif kind in (".jsonl", ".jsonl.gz"):
            texts = ((_text_of(path, number, value, text_key),) for number, value in json_lines(path))
        elif kind == ".py":
            texts = ((_python_source(path),),)
        else:
            texts = (_plain_text(path),)
        for text in texts:
            yield from _chunks(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; mend it or pass other --data") from error


def count_documents(path: Path, text_key: str, limit: int) -> int:
    """The number of documents in a file, or `limit` if there are at least as many."""
    if kind_of(path) not in (".jsonl", ".jsonl.gz", ".parquet"):
        return 1
    count = 0
    for chunk in read_documents(path, text_key):
        count += chunk.first
        if count == limit:
            break
    return count


def _chunks(parts: Iterable[str]) -> Iterator[Chunk]:
    """The text of one document, given in parts of any size, as chunks."""
    first, held = True, ""
    for part in parts:
        held += part
        start = 0
        while len(held) - start > CHUNK:
            cut = held.rfind("\n", start, start + CHUNK) + 1 or start + CHUNK
            yield Chunk(held[start:cut], first)
            start, first = cut, False
        held = held[start:]
    if held or first:
        yield Chunk(held, first)


def _plain_text(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while True:
            raw = file.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset - pending + error.start) from error
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(raw)
            if not raw:
                return


def _python_source(path: Path) -> str:
    """Decoded as Python does it: in the encoding its first two lines declare (PEP 263), with any line end."""
    raw = path.read_bytes()
    encoding = "utf-8"
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
        text.encode()  # some encodings can spell half a surrogate pair
    except (SyntaxError, LookupError, UnicodeError) as error:
        if encoding.startswith("utf-8"):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as wrong:
                raise _not_utf8(path, wrong.start) from wrong
        raise UserError(f"{path} cannot be decoded as Python source ({error}); convert it to UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number and the value of each line of .jsonl. Raises UserError, naming the place; OSError."""
    offset = 0
    for number, raw in enumerate(_lines(path), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + error.start) from error
        if offset == 0:
            line = line.removeprefix("\ufeff")
        offset += len(raw)
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise UserError(f"{path}:{number} is not JSON ({reason}); mend or delete the line") from error
        yield number, value


def _text_of(path: Path, number: int, value: Any, text_key: str) -> str:
    text = value.get(text_key) if isinstance(value, dict) else None
    if not isinstance(text, str):
        is_other = isinstance(value, dict) and text_key not in value
        mend = f"its keys are {_names(value)}; pass --text-key" if is_other else "every line needs one"
        raise UserError(f'{path}:{number} has no string under "{text_key}"; {mend}')
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud800" is good JSON
        raise UserError(
            f'{path}:{number} has half a surrogate pair under "{text_key}"; mend or delete the line'
        ) from error
    return text


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, unpacked from gzip where its name says so."""
    try:
        with gzip.open(path) if kind_of(path).endswith(".gz") else path.open("rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({first_line(error)}); copy it again") from error


def _parquet_rows(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow as pa  # imported here: it takes a while and starts a thread
    import pyarrow.parquet as pq

    row = 0
    try:
        # With a buffer, a row group is not read at once: it may be as large as the file.
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True) as file:
            columns = file.schema_arrow
            index = columns.get_field_index(text_key)  # -1 for none or two
            if index < 0:
                names = _names(columns.names)
                raise UserError(f'{path} has no one column "{text_key}", but {names}; pass --text-key')
            kind = columns.field(index).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise UserError(f'{path}: column "{text_key}" holds {kind}, not strings; convert it or pass --text-key')
            for batch in file.iter_batches(batch_size=ROWS, columns=[text_key]):
                for text in batch.column(text_key).to_pylist():  # by name: "a.b" reads the field b of a column a too
                    if text is None:
                        raise UserError(f'{path}: row {row} has no "{text_key}"; fill or delete it')
                    yield text
                    row += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the text from row {row} on is not UTF-8; write the file again") from error
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise UserError(f"{path} is not a valid parquet file ({first_line(error)}); write it again") from error


def _names(found: Iterable[str]) -> str:
    """Keys or columns as a message lists them: not too many, none too long."""
    names = [name if len(name) <= 40 else f"{name[:40]}..." for name in found]
    return ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) or "none"


def _not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path} is not UTF-8 text: the byte at offset {offset} does not fit; convert the file")
