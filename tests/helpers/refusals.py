"""What the tests of bad input share: a folder of finished runs, and what a refusal must look like."""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.trust import FRAMEWORKS, arguments, train, write_corpus

GPT = ("gpt", "--depth", "1", "--d-model", "16", "--head-dim", "8", "--sequence-len", "16", "--batch-size", "4")
NEW = ("--out-dir", "new")


def make_runs(place: Path) -> Path:
    """A text, and a finished run of each framework and of two models, in `place`."""
    corpus = write_corpus(place / "words.txt")
    for framework in FRAMEWORKS:
        for model, flags in (("linear", ()), ("embedding", ("--tokenizer", "bpe", "--bpe-vocab-size", "270"))):
            argv = arguments(model, corpus, "--steps", "2", "--save-every", "1", *flags)
            assert train(framework, [*argv, "--out-dir", str(place / f"{framework}-{model}")]) == 0
    return place


def enter_copy(runs: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, as the current folder."""
    shutil.copytree(runs, to)
    monkeypatch.chdir(to)
    return to


@dataclass(frozen=True)
class Case:
    """A command line that must be refused; `prepare` makes the folder bad first."""

    says: str
    argv: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda place: None


def put(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(content.encode() if isinstance(content, str) else content)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(place: Path, framework: str, argv: list[str], says: str, capsys) -> None:
    before = hashes(place)
    capsys.readouterr()
    code = train(framework, argv)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert len(err) < 600, "too long to be clear"
    assert re.search(says, err), err
    assert hashes(place) == before, "something was written"
