"""What a report says of tensors that diverge, or come near it: where, by how much, and how they are wrong."""

from collections.abc import Iterator, Sequence

from parity.report.causes import causes
from parity.report.heat import Comparison, comparisons
from parity.report.markup import Markup, element
from parity.report.tables import facts, section, table
from parity.report.text import NONE, count, near_one, number, ratio, share, worst_element
from parity.result import Divergence, Result

MOST = 20  # tensors listed


def first_divergence(result: Result) -> Iterator[Markup]:
    """Where the port diverges first, and the last tensor before it that was still right."""
    d = result.first_divergence
    if d is None:
        return
    values: dict[str, object] = {
        "stage": d.stage,
        "tensor": element("code", d.tensor),
        "step": d.step,
        "initialization": d.init,
        "relative L2 error": number(d.relative_l2),
        "budget": number(d.budget),
    }
    if d.note:
        values["what"] = d.note
    if d.hint:
        values["likely cause"] = d.hint
    before = None
    for t in result.tensors:
        if (t.stage, t.init) == (d.stage, d.init):
            if t.tensor == d.tensor:
                break
            if d.step in t.steps and t.status[t.steps.index(d.step)] == "agrees":
                before = t.tensor
    if before is not None:
        values["last within budget before it"] = element("code", before)
    values |= differing(d, result.sides)
    yield section("First divergence", facts("What comes after it is reported below, but not blamed.", values))


def differing(d: Divergence, sides: Sequence[str]) -> dict[str, object]:
    """How the first divergence is wrong, and what computes it."""
    said: dict[str, object] = {}
    if d.guess:
        said["how it is wrong"] = d.guess
    if d.diagnosis is not None:
        said["furthest off"] = worst_element(d.diagnosis, sides)
        said[f"norm, {sides[1]}'s by {sides[0]}'s"] = near_one(d.diagnosis.norm_ratio)
        said["cosine between the two"] = near_one(d.diagnosis.cosine)
    for side, name in (("torch", "PyTorch"), ("jax", "JAX")):
        if d.code:
            said[f"computed by, in {name}"] = element("code", d.code[side])
    return said


def causes_table(result: Result) -> Markup:
    """The tensors that are wrong by themselves, each at the first step at which it is; the rest as a count."""
    listed, rest = causes(result)
    head = ["tensor", "stage", "step", "init", "group", "budget used", "relative L2"]
    head += ["how it is wrong", "furthest off", "norms", "cosine"]
    rows = []
    for c in listed[:MOST]:
        t, d = c.tensor, c.tensor.diagnosis
        row: list[object] = [element("code", t.tensor), t.stage, c.step, t.init, t.group or NONE]
        row += [f"✗ {share(c.share)}", number(c.relative_l2)]
        row.append("; ".join(filter(None, (t.note, d.guess if d else ""))) or NONE)
        found = [worst_element(d, result.sides), near_one(d.norm_ratio), near_one(d.cosine)] if d else [NONE] * 3
        rows.append([*row, *found])
    caption = f"{min(len(listed), MOST)} of {count(len(listed), 'tensor')} wrong where nothing before is."
    if rest:
        reference, port = result.sides
        caption += f" {count(rest, 'more follows', 'more follow')} from them. Norms: {port}'s by {reference}'s."
    return section("Where it diverges", table(caption, head, rows))


def worst_tensors(result: Result) -> Markup:
    """Where none diverges: each tensor at its worst step, nearest to its budget first."""
    worst: dict[int, Comparison] = {}
    for c in comparisons(result):
        if c.status != "unchecked" and c.share > 0:
            known = worst.get(id(c.tensor))
            worst[id(c.tensor)] = c if known is None or c.share > known.share else known
    ranked = sorted(worst.values(), key=lambda c: -c.share)
    if not ranked:
        return section("Worst tensors", element("p", "Whatever was compared is equal to the last bit."))
    head = ["tensor", "stage", "budget used", "relative L2", "budget", "error ratio", "step", "init", "group"]
    rows = []
    for c in ranked[:MOST]:
        t = c.tensor
        row: list[object] = [element("code", t.tensor), t.stage, share(c.share), number(c.relative_l2)]
        row += [number(c.budget), ratio(c.ratio), c.step, t.init, t.group or NONE]
        rows.append([*row, f"{t.elements:,}"])
    shown = f"{min(len(ranked), MOST)} of {count(len(ranked), 'tensor')}"
    caption = f"{shown} with an error above zero, each at its worst step."
    return section("Worst tensors", table(caption, [*head, "elements"], rows))
