"""Which files make a corpus, in which order, and the hash of what they hold."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinstep.errors import UserError

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".jsonl.gz", ".parquet")
KINDS = " ".join(SUFFIXES)

# Left out of the default corpus: installed packages, and what is not written to be read as a library.
NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "__pycache__",
}


@dataclass(frozen=True)
class CorpusFiles:
    """The files of a corpus, sorted by path, and what they were when they were hashed.

    `sha256` is that of all files' bytes one after another: `cat FILES | sha256sum`.
    """

    source: str
    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    sha256: str

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(self.sizes)

    def check_unchanged(self) -> None:
        """Raises UserError if a file's size is no longer the one that was hashed."""
        for path, size in zip(self.paths, self.sizes, strict=True):
            if not path.exists() or path.stat().st_size != size:
                raise UserError(f"{path} changed while it was read; start again when nothing writes to it")


def find_corpus(data: str | None) -> CorpusFiles:
    """Finds and hashes the files of `--data`, or of the Python standard library when it is None.

    A folder is searched to its depths, without hidden names and links to folders. Files are sorted by their
    path, part by part. Raises UserError for a path that is missing, unreadable, of an unknown kind, or
    without any text file.
    """
    if data is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        source = f"standard library of Python {platform.python_version()}"
        paths = sorted(_walk(root, NOT_LIBRARY, (".py",)))
    else:
        root = Path(data)
        source = data
        paths = [root] if _is_text_file(data) else sorted(_walk(root, set(), SUFFIXES))
    if not paths:
        raise UserError(f"{root} holds no files of {KINDS}; pass --data with some")
    digest = hashlib.sha256()
    sizes = tuple(_hash_file(path, digest) for path in paths)
    return CorpusFiles(source, tuple(paths), sizes, digest.hexdigest())


def kind_of(path: Path) -> str:
    """The end of a file's name that says how it is read: ".txt", ".jsonl.gz"."""
    ends = [suffix.lower() for suffix in path.suffixes]
    return "".join(ends[-2:] if ends[-1:] == [".gz"] else ends[-1:])


def _is_text_file(data: str) -> bool:
    """True for a file of a known kind, False for a folder; UserError for all else."""
    path = Path(data)
    try:
        if not data or not path.exists():
            raise UserError(f"--data {data!r} does not exist; pass a file or folder of {KINDS}")
        if path.is_dir():
            return False
        if not path.is_file():
            raise UserError(f"--data {data} is neither a file nor a folder; pass one of them")
    except OSError as error:
        raise UserError(f"cannot read --data {data}: {error.strerror}; pass another path") from error
    if kind_of(path) not in SUFFIXES:
        raise UserError(f"--data {data} is of an unknown kind; known are {KINDS}")
    return True


def _walk(root: Path, skip: set[str], suffixes: tuple[str, ...]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; mend it or pass other --data") from error

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if kind_of(path) in suffixes and not name.startswith(".") and path.is_file():
                yield path


def _hash_file(path: Path, digest: "hashlib._Hash") -> int:
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; mend it or pass other --data") from error
    return size
