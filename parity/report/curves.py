"""Loss curves of a check: both frameworks overlaid, and their difference beside the envelope on a log axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parity.report.markup import Markup, element
from parity.report.svg import Series, chart
from parity.report.text import NONE, number
from parity.result import Curve, Result, ratio_to_budget


@dataclass(frozen=True)
class Figure:
    """The run from one initialization that comes nearest to its budget, of all seeds."""

    init: str
    losses: list[Series]
    errors: list[Series]
    caption: str


NAMES = {
    "reference": "PyTorch",
    "port": "JAX",
    "envelope": "envelope: PyTorch against itself, one ulp away",
    "limit": "budget of the free run",
    "free": "free-running difference",
    "anchored": "anchored difference: each step from PyTorch's state",
    "own": "envelope of one step",
}


def figures(result: Result) -> list[Figure]:
    """One figure for each initialization."""
    of_init: dict[str, list[Curve]] = {}
    for curve in result.curves:
        of_init.setdefault(curve.init, []).append(curve)  # in the order of their seeds
    return [figure(init, curves, result.seed) for init, curves in of_init.items()]


def figure(init: str, curves: Sequence[Curve], first_seed: int) -> Figure:
    """The figure of one initialization, from the curves of all its seeds in their order."""
    number_of, c = max(enumerate(curves), key=lambda item: nearness(item[1]))
    which = f"seed {first_seed + number_of}, of {len(curves)} the nearest to its budget" if len(curves) > 1 else ""
    losses = [
        Series(NAMES["reference"], "reference", c.steps, c.reference_loss),
        Series(NAMES["port"], "port", c.steps, c.port_loss),
    ]
    errors = [
        Series(NAMES["envelope"], "envelope", c.steps, c.envelope, area=True),
        Series(NAMES["limit"], "limit", c.steps, c.free_budget),
        Series(NAMES["free"], "free", c.steps, c.free_error),
        Series(NAMES["anchored"], "anchored", c.anchored_steps, c.anchored_error, points=True),
        Series(NAMES["own"], "own", c.anchored_steps, c.anchored_envelope, points=True),
    ]
    caption = (
        f"From the {init} initialization{f' ({which})' if which else ''}. Largest relative difference of the losses: "
        f"free-running {most(c.steps, c.free_error)}, anchored {most(c.anchored_steps, c.anchored_error)}; "
        f"widest envelope {most(c.steps, c.envelope)}."
    )
    if not all(math.isfinite(y) for s in losses + errors for y in s.y):
        caption += " A cross at the top edge stands for a value that is not finite."
    return Figure(init, losses, errors, caption)


def nearness(curve: Curve) -> float:
    """How much of its budget the free run uses at most; not a number is beyond any budget."""
    used = [ratio_to_budget(e, b) for e, b in zip(curve.free_error, curve.free_budget, strict=True)]
    return max((math.inf if math.isnan(x) else x for x in used), default=0.0)


def most(x: Sequence[float], y: Sequence[float]) -> str:
    """Where a series is largest."""
    if not y:
        return NONE
    at = max(range(len(y)), key=lambda i: math.inf if math.isnan(y[i]) else y[i])
    return f"{number(y[at])} at step {x[at]}"


def drawn(figure: Figure) -> Markup:
    """Both charts side by side where there is room, with legends in words and line styles."""
    init = figure.init
    return element(
        "figure",
        element("figcaption", figure.caption),
        element(
            "div",
            chart(figure.losses, f"Losses of both frameworks, {init} initialization", "loss (nats per target)", False),
            chart(
                figure.errors,
                f"Relative difference of the losses on a log axis, {init} initialization",
                "relative difference",
                True,
            ),
            class_="charts",
        ),
        legend(("reference", "port", "free", "envelope", "limit", "anchored", "own")),
    )


def legend(styles: Sequence[str]) -> Markup:
    """What the line styles mean, in words."""
    return element("ul", *(element("li", swatch(style), NAMES[style]) for style in styles), class_="legend")


def swatch(style: str) -> Markup:
    """A sample of a line as it is drawn."""
    if style == "envelope":
        mark = element("rect", class_="area envelope", x=0, y=1, width=28, height=10)
    elif style == "anchored":
        mark = element("circle", class_="mark anchored", cx=14, cy=6, r=3)
    elif style == "own":
        mark = element("circle", class_="mark own", cx=14, cy=6, r=5)
    else:
        mark = element("line", class_=f"line {style}", x1=0, x2=28, y1=6, y2=6)
    return element("svg", mark, viewBox="0 0 28 12", aria_hidden="true")
