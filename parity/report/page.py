"""report.html: one file that opens offline, on a phone too, and needs no script."""

from collections.abc import Iterator
from typing import Any

from parity.report import curves
from parity.report.causes import causes
from parity.report.divergence import causes_table, first_divergence, worst_tensors
from parity.report.heat import LEVELS, MOST_ROWS, by_layer, by_step
from parity.report.markup import Markup, element, join
from parity.report.source import lines_section
from parity.report.tables import facts, heat_legend, heat_table, page, section, table
from parity.report.terminal import MARKS, notes, ran_on, ratio_sentence, seeds, stage_numbers
from parity.report.text import NONE, count, duration
from parity.report.unseen import unseen_section
from parity.result import STAGES, Result

MOST_UNCHECKED = 60


def report_page(result: Result) -> str:
    """The whole page."""
    title = f"Parity of {result.model} in {result.dtype}: {result.verdict}"
    found = what_was_found(result) if result.tensors else [element("p", "Nothing was compared.")]
    return page(
        title,
        *head(result),
        *first_divergence(result),
        *lines_section(result),
        *found,
        section("Repeat it", *repeat(result)),
    )


def what_was_found(result: Result) -> Iterator[Markup]:
    """The sections of a check that compared something."""
    yield section("Stages", stage_table(result), *code_table(result))
    yield section("Error by layer and stage", *layer_map(result))
    yield causes_table(result) if causes(result).listed else worst_tensors(result)
    yield section("Error by step", heat_table(by_step(result), "stage", "Largest part of its budget used at a step."))
    if result.curves:
        yield section("Losses", *(curves.drawn(figure) for figure in curves.figures(result)))
    yield from unchecked(result)
    yield from unseen_section(result)


def head(result: Result) -> Iterator[Markup]:
    """Title, verdict, notes, and what was run."""
    yield element("h1", f"Parity of {result.model} in {result.dtype}")
    yield element("p", f"{MARKS[result.verdict]} {result.sentence}", class_=f"verdict {result.verdict}")
    if notes(result):
        yield element("ul", *(element("li", note) for note in notes(result)), class_="notes")
    if (ratios := ratio_sentence(result)) is not None:
        yield element("p", ratios)
    ran = [count(result.steps, "step"), seeds(result), count(result.devices, "device"), duration(result.seconds)]
    yield element("p", ", ".join(ran), class_="soft")
    if (sides := ran_on(result)) is not None:
        yield element("p", sides, class_="soft")


def stage_table(result: Result) -> Markup:
    """One row for each stage."""
    rows = []
    for name in STAGES:
        if name in result.stages:
            s = result.stages[name]
            verdict = element("span", f"{MARKS[s.verdict]} {s.verdict}", class_=s.verdict)
            worst: object = NONE
            if s.relative_l2:
                worst = join([element("code", s.tensor), " ", element("span", f"({s.init})", class_="soft")])
            rows.append([name, verdict, worst, *stage_numbers(s).values()])
    caption = "In order; each stage starts from what PyTorch had before it, so an error shows where it arises."
    if any(stage.median_ratio is not None for stage in result.stages.values()):
        caption += " Error ratio: JAX's error against float64, divided by PyTorch's own."
    head = ["step", "relative L2", "budget", "budget used", "error ratio", "median ratio", "compared", "unchecked"]
    return table(caption, ["stage", "verdict", "worst tensor", *head], rows)


def code_table(result: Result) -> Iterator[Markup]:
    """Which functions compute each stage; nothing of a user's own pair."""
    rows = []
    for name in STAGES:
        if name in result.stages and (code := result.stages[name].code):
            rows.append([name, element("code", code["torch"]), element("code", code["jax"])])
    if rows:
        shown = table("The functions that compute each stage.", ["stage", "in PyTorch", "in JAX"], rows)
        yield element("details", element("summary", "What computes each stage"), shown)


def layer_map(result: Result) -> Iterator[Markup]:
    """The heat map of layers, with its legend."""
    heat = by_layer(result)
    yield heat_legend(dict(enumerate(LEVELS)))
    caption = "Largest part of its budget that any tensor of a layer uses, over steps and initializations."
    yield heat_table(heat, "layer", caption)
    if heat.left_out:
        left_out = count(len(heat.left_out), "layer")
        yield element("p", f"{left_out} with smaller errors than these {MOST_ROWS} left out; parity.json has all.")


def unchecked(result: Result) -> Iterator[Markup]:
    """What the check could not have seen fail, and why."""
    rows = []
    for t in result.tensors:
        steps = [step for step, status in zip(t.steps, t.status, strict=True) if status == "unchecked"]
        if steps:
            which = "all" if len(steps) == len(t.steps) else ", ".join(map(str, steps[:8]))
            which += ", …" if len(steps) > 8 and which != "all" else ""
            rows.append([element("code", t.tensor), t.stage, t.init, which, t.why_unchecked or NONE])
    if not rows:
        return
    caption = f"{count(len(rows), 'tensor')} with comparisons that could not have failed."
    if len(rows) > MOST_UNCHECKED:
        caption += f" The first {MOST_UNCHECKED}; parity.json has all."
    shown = table(caption, ["tensor", "stage", "init", "steps", "why"], rows[:MOST_UNCHECKED])
    yield section("Unchecked", element("details", element("summary", caption), shown))


def repeat(result: Result) -> Iterator[Markup]:
    """The command, the versions and the settings that it takes to run the check again."""
    if result.command:
        yield element("pre", element("code", result.command))
    ran: dict[str, object] = {
        "model": result.model,
        "dtype": result.dtype,
        "steps": result.steps,
        "seeds": seeds(result),
        "devices": result.devices,
        **result.environment,
    }
    yield facts("Versions and machine.", ran)
    if result.config:
        settings = facts("Every setting of the run.", dict(flat(result.config)))
        yield element("details", element("summary", "Configuration"), settings)


def flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings by dotted names."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
