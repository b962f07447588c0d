"""The two implementations mirror each other: same files, names, methods and parameters, in the same order.

Functions and classes are compared, constants and aliases are not. What differs is listed, with its reason, in
tests/helpers/differences.py; a listed difference that is gone fails too.
"""

import ast
from pathlib import Path

import pytest

from tests.helpers.differences import DIFFERENCES, JAX_FILES

ROOT = Path(__file__).parents[1]

Signatures = dict[str, list[str]]


def files(room: str) -> set[str]:
    return {str(path.relative_to(ROOT / room)) for path in (ROOT / room).rglob("*.py")}


SHARED = sorted(files("jax_impl") & files("torch_ref"))


def signatures(source: str) -> Signatures:
    """Public functions, classes and "Class.method" of a module, in order, each with the names of its parameters."""
    found: Signatures = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{node.name}.{method.name.replace('__call__', 'forward')}"] = parameters(method)
    return {name: names for name, names in found.items() if is_public(name)}


def parameters(node: ast.FunctionDef) -> list[str]:
    a = node.args
    rest = [argument for argument in (a.vararg, *a.kwonlyargs, a.kwarg) if argument]
    return [argument.arg for argument in (*a.posonlyargs, *a.args, *rest)]


def is_public(name: str) -> bool:
    return not any(part.startswith("_") and part != "__init__" for part in name.split("."))


def without_twin(ours: Signatures, theirs: Signatures) -> list[str]:
    """Names that only `ours` has. A class without a twin stands for its methods; `__init__` may be inherited."""
    alone = [name for name in ours if name not in theirs and not name.endswith(".__init__")]
    return [name for name in alone if "." not in name or name.partition(".")[0] in theirs]


def differences(file: str, jax: Signatures, torch: Signatures) -> dict[str, tuple[str, str]]:
    """In the list's form: names that only one of two modules has, parameters that only one of two functions takes."""
    found = {file: (without_twin(jax, torch), without_twin(torch, jax))}
    for name in in_both(jax, torch):
        ours, theirs = jax[name], torch[name]
        found[f"{file} {name}"] = [x for x in ours if x not in theirs], [x for x in theirs if x not in ours]
    return {key: (", ".join(jax), ", ".join(torch)) for key, (jax, torch) in found.items() if jax or torch}


def in_both(ours, theirs) -> list[str]:
    """In the order of the first."""
    return [name for name in ours if name in theirs]


def edits(found: dict[str, tuple[str, str]], listed: dict[str, tuple[str, str, str]]) -> list[str]:
    """What to do to the list of differences, line by line; the order of names within an entry is free."""

    def same(key: str) -> bool:
        return key in found and key in listed and as_sets(found[key]) == as_sets(listed[key][:2])

    gone = [f'remove "{key}": ("{jax}", "{torch}", ...),' for key, (jax, torch, _) in listed.items() if not same(key)]
    new = [f'add "{key}": ("{jax}", "{torch}", "why"),' for key, (jax, torch) in found.items() if not same(key)]
    return gone + new


def as_sets(pair: tuple[str, str]) -> list[set[str]]:
    return [set(names.split(", ")) for names in pair]


def of_file(file: str) -> tuple[Signatures, Signatures]:
    jax, torch = (ROOT / room / file for room in ("jax_impl", "torch_ref"))
    return signatures(jax.read_text(encoding="utf-8")), signatures(torch.read_text(encoding="utf-8"))


def test_torch_ref_has_no_file_that_jax_impl_lacks_and_the_reverse_is_listed():
    assert files("torch_ref") - files("jax_impl") == set()
    assert files("jax_impl") - files("torch_ref") == set(JAX_FILES)


def test_what_differs_is_listed_and_what_is_listed_differs():
    found = {key: pair for file in SHARED for key, pair in differences(file, *of_file(file)).items()}
    found_edits = edits(found, DIFFERENCES)
    assert not found_edits, "\n".join(["mend the twins, or tests/helpers/differences.py so:", *found_edits])


@pytest.mark.parametrize("file", SHARED)
def test_both_have_the_same_order(file):
    jax, torch = of_file(file)
    assert in_both(jax, torch) == in_both(torch, jax)
    for name in in_both(jax, torch):
        assert in_both(jax[name], torch[name]) == in_both(torch[name], jax[name]), name


def test_what_is_listed_has_a_reason():
    assert all(JAX_FILES.values())
    assert all(reason for *_, reason in DIFFERENCES.values())


JAX = """
def make(config, *, axis=None): ...
def only_here(x): ...
def _private(x): ...
class Model:
    def __init__(self, config, dtype): ...
    def __call__(self, x_BD, key): ...
    def hidden(self): ...
class State:
    def replace(self): ...
"""
TORCH = """
def make(config): ...
def _other(): ...
class Model:
    def forward(self, x_BD): ...
"""


def test_differences_are_seen_in_names_methods_and_parameters():
    assert differences("f.py", signatures(JAX), signatures(TORCH)) == {
        "f.py": ("only_here, Model.hidden, State", ""),
        "f.py make": ("axis", ""),
        "f.py Model.forward": ("key", ""),
    }
    assert differences("f.py", signatures(JAX), signatures(JAX)) == {}
    renamed = signatures(JAX.replace("config, dtype", "settings, dtype"))
    assert differences("f.py", renamed, signatures(JAX)) == {"f.py Model.__init__": ("settings", "config")}


def test_a_new_difference_is_to_be_added_and_one_that_is_gone_removed():
    found = {"f.py": ("b, a", ""), "f.py make": ("axis", "")}
    assert edits(found, {"f.py": ("a, b", "", "reason"), "f.py make": ("axis", "", "reason")}) == []
    assert edits(found, {"f.py": ("a, b", "", "reason"), "f.py gone": ("", "x", "reason")}) == [
        'remove "f.py gone": ("", "x", ...),',
        'add "f.py make": ("axis", "", "why"),',
    ]
    assert edits({}, {"f.py": ("a", "", "reason")}) == ['remove "f.py": ("a", "", ...),']


def test_order_is_seen():
    swapped = signatures("def f(b, a): ...\ndef e(): ...")
    here = signatures("def e(): ...\ndef f(a, b): ...")
    assert in_both(here, swapped) != in_both(swapped, here)
    assert in_both(here["f"], swapped["f"]) != in_both(swapped["f"], here["f"])
