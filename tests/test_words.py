"""Names in the two implementations use the field's words, which a reader searches for, and no words of our own."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Our word, as it begins a part of a name, and the field's.
FIELDS_WORDS = {
    "divide": "shard",
    "spread": "shard, or name the axes",
    "whole": "replicate, replicated",
    "piece": "chunk",
    "turn": "transpose",
}


def defined_names(source: str) -> set[str]:
    """Functions, classes, parameters, variables and attributes that a source defines."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def own_words(source: str) -> list[str]:
    parts = {name: re.findall("[A-Z]?[a-z]+", name) for name in defined_names(source)}
    return sorted(
        f"{name}: say {better}"
        for name, words in parts.items()
        for word, better in FIELDS_WORDS.items()
        if any(part.lower().startswith(word) for part in words)
    )


def test_names_use_the_fields_words():
    paths = [path for room in ("jax_impl", "torch_ref") for path in sorted((ROOT / room).rglob("*.py"))]
    found = [f"{path.relative_to(ROOT)} {name}" for path in paths for name in own_words(path.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_a_word_of_our_own_is_seen_in_every_kind_of_name():
    source = """
class Spread: ...
def count_pieces(whole, returned, *, divided_dim):
    x.turned = half = 1
    return turn
"""
    expected = ["Spread", "count_pieces", "divided_dim", "turned", "whole"]
    assert [line.partition(":")[0] for line in own_words(source)] == expected
