"""The rooms import each other as README's map says, and no modules import each other in a circle."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("twinstep", "jax_impl", "torch_ref", "parity", "bench")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    module_name(path): path.read_text(encoding="utf-8")
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imported(source: str, *, at_import: bool = False) -> set[str]:
    """Names of the modules that a source imports, and of what it takes from them ("a.b" for `from a import b`).

    at_import: only what runs when the module is imported, so not within functions nor under TYPE_CHECKING.
    """
    found, nodes = set(), [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import, which this test does not follow"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif not (at_import and is_left_out(node)):
            nodes += ast.iter_child_nodes(node)
    return found


def is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def room_of(name: str) -> str:
    return name.partition(".")[0]


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """Room -> the other rooms, tests, docs or examples that its modules import."""
    own = {*ROOMS, "tests", "docs", "examples"}
    found: dict[str, set[str]] = {room_of(name): set() for name in sources}
    for name, source in sources.items():
        found[room_of(name)] |= {room_of(other) for other in imported(source)} & own - {room_of(name)}
    return found


def arrows_of_map(text: str) -> dict[str, set[str]]:
    """The table `| room | imports |` of the README."""
    table = text.partition("| room | imports |\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split("|") for line in table.splitlines()[1:]]
    return {re.findall(r"\w+", room)[0]: set(re.findall(r"`(\w+)/?`", cell)) for room, cell in rows}


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other when they are imported, the first again at the end; empty if there are none."""
    graph = {}
    for name, source in sources.items():
        taken = imported(source, at_import=True)
        # `from a import b` takes the module a.b if there is one, else something of the module a.
        graph[name] = {other if other in sources else other.rpartition(".")[0] for other in taken}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_rooms_import_each_other_as_the_map_says():
    assert arrows(SOURCES) == arrows_of_map((ROOT / "README.md").read_text(encoding="utf-8"))


def test_no_modules_import_each_other_in_a_circle():
    assert circle(SOURCES) == []


TEXT = """
| room | imports |
|---|---|
| `twinstep/` | nothing |
| `parity` | `twinstep`, `jax_impl` |

| `bench` | `parity` |
"""


def test_the_map_is_read_row_by_row():
    assert arrows_of_map(TEXT) == {"twinstep": set(), "parity": {"twinstep", "jax_impl"}}


@pytest.mark.parametrize(
    "source",
    ["import twinstep", "from twinstep.config import Config", "def f():\n    import twinstep.errors as e", "x: 'a'"],
)
def test_an_arrow_is_seen_wherever_it_stands(source):
    found = arrows({"parity.a": f"import parity.b, numpy\n{source}", "bench.c": ""})
    assert found == {"parity": {"twinstep"} if "twinstep" in source else set(), "bench": set()}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from a import b", ["a.b", "a.c", "a.b"]),
        ("try:\n    import a.b\nfinally:\n    pass", ["a.b", "a.c", "a.b"]),
        ("def f():\n    import a.b", []),
        ("if TYPE_CHECKING:\n    import a.b", []),
    ],
)
def test_a_circle_at_import_is_seen(source, expected):
    assert sorted(circle({"a": "", "a.b": "from a.c import name", "a.c": source})) == sorted(expected)
