"""Which names of JAX are read that a release may take away, and where.

A private name is read in one file a room, which has tests of its own. Documented but experimental names stand where
they are used; each must be there in the JAX that is installed.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
ROOMS = ("twinstep", "jax_impl", "torch_ref", "parity", "bench", "tools", "docs", "examples", "tests")
PRIVATE = ("jax._src", "jax.extend", "jax.interpreters", "jaxlib")
IN_ONE_FILE = {
    "jax_impl": "jax_impl/aot/absent_cudnn.py",
    "parity": "parity/jax_internals.py",
    "tests": "tests/helpers/jaxprs.py",
}


def names_of(source: str) -> Iterator[str]:
    """Dotted names that a source reads, through what it imports: `topologies.f` is "jax.experimental.topologies.f"."""
    tree, known = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.partition(".")[0]
                known[alias.asname or head] = alias.name if alias.asname else head
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if parts and isinstance(node, ast.Name) and node.id in known:
            yield ".".join([known[node.id], *parts])


def read_names(start: tuple[str, ...]) -> dict[str, set[str]]:
    """File -> the names that it reads of these modules."""
    found: dict[str, set[str]] = {}
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for name in names_of(path.read_text(encoding="utf-8")):
            if any(name == module or name.startswith(f"{module}.") for module in start):
                found.setdefault(str(path.relative_to(ROOT)), set()).add(name)
    return found


def missing(name: str) -> str | None:
    """The first part of a dotted name that this JAX does not have."""
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for n, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:n]))
            except ImportError:
                return ".".join(parts[:n])
        found = getattr(found, part)
    return None


def test_private_names_of_jax_are_read_in_one_file_of_a_room():
    for file, names in read_names(PRIVATE).items():
        assert file == IN_ONE_FILE.get(file.partition("/")[0]), f"{file} reads {sorted(names)}"


def test_every_name_that_a_release_may_take_away_is_there():
    gone = [
        f"{missing(name)}, which {file} reads"
        for file, names in read_names(("jax.experimental", *PRIVATE)).items()
        for name in sorted(names)
        if missing(name)
    ]
    assert not gone, f"JAX {jax.__version__} has no " + "; no ".join(gone)


def test_names_are_followed_through_imports_and_a_missing_one_is_named():
    source = "from jax.experimental import topologies as t\nimport jax.extend\nt.describe(x).y\njax.extend.core.Var"
    assert {"jax.experimental.topologies.describe", "jax.extend.core.Var"} <= set(names_of(source))
    assert missing("jax.experimental.nowhere.f") == "jax.experimental.nowhere"
    assert missing("jax.numpy.nothing") == "jax.numpy.nothing"
