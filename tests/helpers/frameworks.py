"""The frameworks that are installed here, and which tests need torch: without it they are not collected.

A test file needs torch if it is of a room that does, if it, or a module of ours that it imports, imports torch or such
a room, or if it stands in `ALSO`. A case needs it if a parameter of the test names torch, such a room or its module.
"""

import ast
import importlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"jax": "jax_impl", "torch": "torch_ref"}
ALSO = ("test_bad_resume.py", "test_extend.py", "test_extras.py", "test_shadows.py")  # start torch's commands
NEED_TORCH = ("torch", "torch_ref", "parity", "bench")
FRAMEWORKS = tuple(name for name in ROOMS if find_spec(name))


def in_each(name: str) -> dict[str, ModuleType]:
    """Framework -> its module of this name."""
    return {framework: importlib.import_module(f"{ROOMS[framework]}.{name}") for framework in FRAMEWORKS}


def files_that_need_torch() -> list[Path]:
    """The test files of rooms that need it, and those that import it, themselves or through our modules."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    rest = [path for path in files if path.parent.name not in NEED_TORCH and path.name not in ALSO]
    return sorted({*files} - {*rest}) + [path for path in rest if needs_torch(path, set())]


def needs_torch(path: Path, seen: set[Path]) -> bool:
    """Whether a file, or one of ours that it imports, does. seen: files that were looked at already."""
    if path in seen:
        return False
    seen.add(path)
    names = names_imported_by(path)
    if any(name.partition(".")[0] in NEED_TORCH for name in names):
        return True
    return any(needs_torch(file, seen) for name in names for file in our_files(name))


@cache
def names_imported_by(path: Path) -> set[str]:
    return imported_names(path.read_text(encoding="utf-8"))


def imported_names(source: str) -> set[str]:
    """The modules that a source imports anywhere, and what it takes from them ("a.b" for `from a import b`)."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def our_files(name: str) -> list[Path]:
    """The files of this repository that importing a dotted name runs: its packages and the module itself."""
    parts = name.split(".")
    places = [ROOT.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return [file for place in places for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]


def without_cases_of_torch(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests to run and those to leave out where there is no torch."""
    kept, left_out = [], []
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        heads = {value.partition(".")[0] for value in values if isinstance(value, str)}
        (left_out if heads & set(NEED_TORCH) else kept).append(item)
    return kept, left_out
