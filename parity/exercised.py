"""Which lines of the port a check ran or traced, and which it only imported.

What did not run was not compared: a fault there passes. coverage.py watches the lines; a function that JAX traces runs
once in Python, so that its lines are seen then.
"""

import ast
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parity.broken import is_library
from parity.result import NotRun

REFUSALS = r"^\s*(raise|assert) "  # of bad input and of what cannot be: no arithmetic


@dataclass
class Lines:
    """Of the watched files: the lines of their statements, and of those that did not run."""

    statements: dict[Path, set[int]] = field(default_factory=dict)
    missing: dict[Path, set[int]] = field(default_factory=dict)


@contextmanager
def watch_lines(files: Sequence[Path]) -> Iterator[Lines]:
    """The lines of these files, entered when the context ends; see `can_watch`."""
    lines = Lines()
    if not can_watch():
        yield lines
        return
    import coverage
    from coverage.exceptions import CoverageWarning

    watcher = coverage.Coverage(data_file=None, config_file=False, include=list(map(str, files)), messages=False)
    watcher.exclude(REFUSALS)
    watcher.start()
    try:
        yield lines
    finally:
        watcher.stop()
        with warnings.catch_warnings(category=CoverageWarning, action="ignore"):  # where nothing at all ran
            for path in files:
                _, statements, _, missing, _ = watcher.analysis2(str(path))
                lines.statements[path], lines.missing[path] = set(statements), set(missing)


def can_watch() -> bool:
    """Not where a debugger or another coverage is at work: the two would stop each other. coverage.py must be there.

    It comes with torch's extra, which a host of JAX alone need not have.
    """
    return sys.gettrace() is None and importlib.util.find_spec("coverage") is not None


def source_files(function: Callable[..., Any]) -> list[Path]:
    """The file of a port's function, or of the module that an adapter made a function of; none of an installed library.

    An adapter names the file in the function's `source`.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    path = Path(getattr(function, "source", code.co_filename if code is not None else ""))
    return [path] if path.is_file() and not is_library(str(path)) else []


def not_run(lines: Lines, root: Path) -> list[NotRun]:
    """The functions that did not run, or not wholly, by file and in its order; files relative to `root`.

    What stands outside of functions runs when a file is imported, and is left out.
    """
    found = []
    for path, statements in sorted(lines.statements.items()):
        for name, body in functions(ast.parse(path.read_text(encoding="utf-8"))).items():
            missing = body & lines.missing[path]
            if missing:
                file = path.relative_to(root).as_posix()
                found.append(NotRun(file, name, sorted(missing), missing == body & statements))
    return found


def functions(tree: ast.AST, prefix: str = "") -> dict[str, set[int]]:
    """Function -> lines of its statements, without its docstring and without the functions within it."""
    found: dict[str, set[int]] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = functions(node, f"{prefix}{node.name}.")
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = {x.lineno for part in body for x in ast.walk(part) if isinstance(x, ast.stmt)}
            found[prefix + node.name] = lines - set().union(*inner.values())
            found |= inner
        elif isinstance(node, ast.ClassDef):
            found |= functions(node, f"{prefix}{node.name}.")
        else:
            found |= functions(node, prefix)
    return found
