"""What was found, in words."""

from dataclasses import replace

from parity.lines.find import Found, Suspect
from parity.lines.line import Lines


def in_words(found: Found) -> Lines:
    """The answer, as a report shows it."""
    sides = {"torch": found.torch, "jax": found.jax}
    operations = {side: one.side.graph.nodes[one.node].op for side, one in sides.items() if one is not None}
    operands = {side: described(one) for side, one in sides.items() if one is not None}
    lines = {side: None if one is None else one.line for side, one in sides.items()}
    if not found.together:  # two places, of which either may be the cause
        lines = {side: line and replace(line, exact=False) for side, line in lines.items()}
    return Lines(lines["torch"], lines["jax"], operations, operands)


def described(one: Suspect) -> list[str]:
    """Each operand: its name, or the operation and line that made it; and whether it agrees."""
    said = []
    for operand in one.operands:
        node = one.side.graph.nodes[operand.node]
        name = node.name or (f"{node.op} of line {node.line.first}" if node.line else node.op)
        said.append(f"{name} ({operand.status})" if operand.status else name)
    return said
