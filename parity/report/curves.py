"""Loss curves of a check: both frameworks overlaid, and their difference beside the envelope on a log axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from parity.report.markup import Markup, element
from parity.report.svg import Series, chart, largest
from parity.report.text import count
from parity.result import Curve, Result


@dataclass(frozen=True)
class Figure:
    """All runs from one initialization, one for each seed."""

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
    return [
        figure(init, [c for c in result.curves if c.init == init])
        for init in dict.fromkeys(curve.init for curve in result.curves)
    ]


def figure(init: str, curves: Sequence[Curve]) -> Figure:
    def series(style: str, x: str, y: str, area: bool = False, points: bool = False) -> list[Series]:
        return [Series(NAMES[style], style, getattr(c, x), getattr(c, y), area, points) for c in curves]

    errors = [
        *series("envelope", "steps", "envelope", area=True),
        *series("limit", "steps", "free_budget"),
        *series("free", "steps", "free_error"),
        *series("anchored", "anchored_steps", "anchored_error", points=True),
        *series("own", "anchored_steps", "anchored_envelope", points=True),
    ]
    worst = {style: most([s for s in errors if s.style == style]) for style in ("free", "anchored", "envelope")}
    return Figure(
        init,
        [*series("reference", "steps", "reference_loss"), *series("port", "steps", "port_loss")],
        errors,
        f"From the {init} initialization, {count(len(curves), 'seed')}. Largest relative difference of the losses: "
        f"free-running {worst['free']}, anchored {worst['anchored']}; widest envelope {worst['envelope']}.",
    )


def most(series: Sequence[Series]) -> str:
    pairs = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True)]
    return largest([x for x, _ in pairs], [y for _, y in pairs])


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
    return element("ul", *(element("li", swatch(style), NAMES[style]) for style in styles), class_="legend")


def swatch(style: str) -> Markup:
    """A piece of a line as it is drawn."""
    if style == "envelope":
        mark = element("rect", class_="area envelope", x=0, y=1, width=28, height=10)
    elif style == "anchored":
        mark = element("circle", class_="mark anchored", cx=14, cy=6, r=3)
    elif style == "own":
        mark = element("circle", class_="mark own", cx=14, cy=6, r=5)
    else:
        mark = element("line", class_=f"line {style}", x1=0, x2=28, y1=6, y2=6)
    return element("svg", mark, viewBox="0 0 28 12", aria_hidden="true")
