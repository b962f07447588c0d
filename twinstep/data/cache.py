"""Tokenized corpora on disk, written once and read through memory maps.

An entry is a folder named by the hash of everything it depends on, holding `train.bin` and `validation.bin`
(flat arrays of ids in the narrowest unsigned type) and `meta.json`. It is written under another name and then
renamed, so that several processes may write the same entry; one whose sizes do not match its `meta.json` is written
again.
"""

import atexit
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinstep.data.split import SplitChunk
from twinstep.data.tokenizer import Tokenizer
from twinstep.errors import UserError

FORMAT = 1  # of an entry: raise it when the same key would hold other bytes
ENCODE_AT_ONCE = 2**18  # characters; the library takes some 200 bytes for each while it works


@dataclass(frozen=True)
class TokenStream:
    """A flat array of token ids on disk."""

    path: Path
    dtype: str
    length: int

    def open(self) -> np.ndarray:
        """A memory map. Release it soon: the pages that were read through it count as this process's memory."""
        try:
            return np.memmap(self.path, self.dtype, mode="r", shape=(self.length,))
        except (OSError, ValueError) as error:  # ValueError: shorter than `length`
            raise UserError(f"the tokenized corpus {self.path} was removed or cut; start again") from error


@dataclass(frozen=True)
class TokenizedCorpus:
    """Both parts of a corpus as token streams on disk."""

    train: TokenStream
    validation: TokenStream
    meta: dict[str, Any]  # documents and text bytes of each part


def cache_folder(cache_dir: str | None) -> Path:
    """Where tokenized corpora live: --cache-dir, $XDG_CACHE_HOME/twinstep or ~/.cache/twinstep."""
    if cache_dir is not None:
        return Path(cache_dir)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "twinstep")


def entry_key(**parts: Any) -> str:
    """SHA-256 over everything an entry depends on."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **parts}, sort_keys=True).encode()).hexdigest()


def read_entry(folder: Path) -> TokenizedCorpus | None:
    """The entry in `folder`, None if there is none or it is incomplete."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        dtype = meta["dtype"]
        streams = {}
        for part in ("train", "validation"):
            path, length = folder / f"{part}.bin", meta[part]["tokens"]
            if path.stat().st_size != length * np.dtype(dtype).itemsize:
                return None
            streams[part] = TokenStream(path, dtype, length)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenizedCorpus(streams["train"], streams["validation"], meta)


def write_entry(folder: Path, write: Callable[[Path], dict[str, Any]]) -> TokenizedCorpus:
    """An entry at `folder`: `write` writes both streams into a folder and returns what `meta.json` says of them.

    Raises OSError where it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"unfinished-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        meta = write(temporary)
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if folder.exists() and read_entry(folder) is None:
            folder.rename(temporary / "damaged")
        try:
            temporary.rename(folder)
        except OSError:
            if read_entry(folder) is None:  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder / "damaged", ignore_errors=True)
    entry = read_entry(folder)
    if entry is None:
        raise OSError(f"{folder} did not keep what was written")
    return entry


def temporary_folder() -> Path:
    """A folder that is deleted when this process ends, for caches that cannot be written."""
    folder = tempfile.mkdtemp(prefix="twinstep-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def write_streams(folder: Path, chunks: Iterable[SplitChunk], tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokenizes documents into both streams, for `write_entry`."""
    dtype = np.dtype(next(t for t in ("<u1", "<u2", "<u4") if tokenizer.vocab_size - 1 <= np.iinfo(t).max))
    counts = {part: {"documents": 0, "bytes": 0, "tokens": 0} for part in ("train", "validation")}
    bos = np.array([tokenizer.bos], dtype).tobytes()
    with (folder / "train.bin").open("wb") as train, (folder / "validation.bin").open("wb") as validation:

        def write(group: list[SplitChunk]) -> None:
            encoded = tokenizer.encode_many([chunk.text for chunk in group])
            for chunk, ids in zip(group, encoded, strict=True):
                count = counts["validation" if chunk.validation else "train"]
                file = validation if chunk.validation else train
                if chunk.first:
                    file.write(bos)
                file.write(ids.astype(dtype).tobytes())
                count["documents"] += chunk.first
                count["bytes"] += int(tokenizer.token_bytes[ids].sum())
                count["tokens"] += chunk.first + len(ids)

        group: list[SplitChunk] = []
        size = 0
        for chunk in chunks:
            group.append(chunk)
            size += len(chunk.text) + 1
            if size >= ENCODE_AT_ONCE:
                write(group)
                group, size = [], 0
        write(group)
    return {"dtype": dtype.str, **counts}
