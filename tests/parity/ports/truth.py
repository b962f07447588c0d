"""The lines that a planted bug makes wrong: in the port's file, and in torch's the ones that compute the same."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import transformers

from .bug import Bug

PORTS = Path(__file__).parent
TRANSFORMERS = Path(transformers.__file__).parent
PLACE = re.compile(r"(?P<file>[\w/]+\.py):(?P<function>[\w.]+)(\[(?P<number>\d)\])?: (?P<beginning>.+)")
COMPUTES = ast.Call | ast.BinOp | ast.UnaryOp | ast.Compare | ast.Subscript
Function = ast.FunctionDef | ast.Lambda


class Span(NamedTuple):
    """One statement."""

    file: Path
    first: int
    last: int


def true_lines(port: ModuleType, bug: Bug) -> list[int]:
    """The lines of the port's file that are wrong once the bug is planted.

    They are the replacement's statements that the original does not have. Where these compute nothing (something was
    only removed), or where a constant or a function of a library is put in, they are the statements that use it. Then
    those that the bug itself names.
    """
    tree, wrong = parsed(Path(port.__file__)), replacement(port, bug)
    found = changed(tree, bug.name, wrong) if wrong else []
    if not any(isinstance(node, COMPUTES) for statement in found for node in ast.walk(statement)):
        found = uses(tree, bug.name)
    spans = [(node.lineno, node.end_lineno) for node in found] + [place(text)[1:] for text in bug.jax]
    return sorted({line for first, last in spans for line in range(first, last + 1)})


def inside_lines(bug: Bug) -> list[int]:
    """Lines of helpers that a true line calls wrongly: there the first wrong value is computed, by right code."""
    spans = [place(text) for text in bug.inside]
    return sorted({line for _, first, last in spans for line in range(first, last + 1)})


def torch_lines(bug: Bug) -> list[Span]:
    """The statements on torch's side that compute what the bug gets wrong, the closest first."""
    return [place(text) for text in bug.torch]


def place(text: str) -> Span:
    """The one statement that a line as in `Bug` stands for."""
    parts = PLACE.fullmatch(text)
    assert parts, f"not file.py:function: beginning: {text}"
    file = file_named(parts["file"])
    nodes = [parsed(file)]
    for name in parts["function"].split("."):
        nodes = [node for outer in nodes for node in outer.body if getattr(node, "name", None) == name]
    source = file.read_text()
    found = [s for node in nodes for s in statements(node) if segment(source, s).startswith(parts["beginning"])]
    number = int(parts["number"] or 1)
    enough = len(found) >= number if parts["number"] else len(found) == 1
    assert enough, f"{len(found)} statements begin so: {text}"
    return Span(file, found[number - 1].lineno, found[number - 1].end_lineno)


def file_named(name: str) -> Path:
    if name.startswith("modeling_"):
        return TRANSFORMERS / "models" / name.removeprefix("modeling_").removesuffix(".py") / name
    return PORTS / name if (PORTS / name).is_file() else TRANSFORMERS / name


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def segment(source: str, statement: ast.stmt) -> str:
    return source.splitlines()[statement.lineno - 1][statement.col_offset :]


def statements(node: ast.AST) -> list[ast.stmt]:
    """The simple ones (no loops, no functions) in the order of the source; no docstrings."""
    simple = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr
    found = [n for n in ast.walk(node) if isinstance(n, simple)]
    found = [n for n in found if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return sorted(found, key=lambda n: n.lineno)


def replacement(port: ModuleType, bug: Bug) -> Function | None:
    """The code of a replacement that is written in the port's file."""
    if not inspect.isfunction(bug.wrong) or bug.wrong.__module__ != port.__name__:
        return None
    first = bug.wrong.__code__.co_firstlineno
    functions = [n for n in ast.walk(parsed(Path(port.__file__))) if isinstance(n, Function)]
    return next(n for n in functions if n.lineno == first)


def changed(tree: ast.Module, name: str, wrong: Function) -> list[ast.expr | ast.stmt]:
    if isinstance(wrong, ast.Lambda):
        return [wrong.body]
    original = next(node for node in tree.body if getattr(node, "name", None) == name)
    kept = {ast.dump(statement) for statement in statements(original)}
    return [statement for statement in statements(wrong) if ast.dump(statement) not in kept]


def uses(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements that use a name, of those that `jax_side` and what it calls consist of."""
    return [s for node in called(tree, "jax_side") for s in statements(node) if name in names(s)]


def called(tree: ast.Module, start: str) -> Iterator[ast.stmt]:
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    waiting, seen = [start], {start}
    while waiting:
        node = defined[waiting.pop()]
        yield node
        new = (names(node) & defined.keys()) - seen
        seen |= new
        waiting += new


def names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
