"""Line charts as inline SVG: sharp at every size, in the page's own colours, readable without a script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parity.report.markup import Markup, element

WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 56, 428, 12, 232  # of the plot's area
FEW = 20  # up to so many points, each gets a dot


@dataclass(frozen=True)
class Series:
    """A line, or an area down to the axis. `style` is its CSS class, which gives colour and dashes."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    area: bool = False
    points: bool = False  # no line


@dataclass(frozen=True)
class Axis:
    """From a value to its place, 0 at the bottom and 1 at the top; outside is moved to the edge."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """The value's place, between 0 and 1."""
        if self.log:
            at = (math.log10(value / self.low) / math.log10(self.high / self.low)) if value > 0 else 0.0
        else:
            at = (value - self.low) / (self.high - self.low)
        return min(max(at, 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their labels. The bottom of a log axis stands for zero, which has no place on it."""
        if self.log:
            first, last = round(math.log10(self.low)) + 1, round(math.log10(self.high))
            every = -(-(last - first + 1) // 6)
            return [(self.low, "0"), *((10.0**e, f"1e{e}") for e in range(first, last + 1, every))]
        step = nice_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        values = [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(value, f"{value:.6g}") for value in values]


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= rough * (1 - 1e-9))


def linear_axis(values: Sequence[float]) -> Axis:
    """Around all finite values, with a little room."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return Axis(low - room, high + room, False)


def log_axis(values: Sequence[float]) -> Axis:
    """Whole decades around all finite values above zero, and one below them for zero."""
    positive = [v for v in values if math.isfinite(v) and v > 0] or [1e-16]
    low = math.floor(math.log10(min(positive)))
    high = math.ceil(math.log10(max(positive)))
    return Axis(10.0 ** (low - 1), 10.0 ** max(high, low + 1), True)


def chart(series: Sequence[Series], title: str, y_label: str, log: bool) -> Markup:
    """Series over steps. A value that is not finite is a cross at the top edge."""
    every_y = [y for s in series for y in s.y]
    every_x = [x for s in series for x in s.x]
    axis = log_axis(every_y) if log else linear_axis(every_y)
    across = Axis(min(every_x, default=0), max(max(every_x, default=1), min(every_x, default=0) + 1), False)
    return element(
        "svg",
        element("title", title),
        *grid(axis, across, y_label),
        *(mark for s in series for mark in drawn(s, axis, across)),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
    )


def grid(axis: Axis, across: Axis, y_label: str) -> list[Markup]:
    """Lines, ticks and labels of both axes."""
    marks = []
    for value, label in axis.ticks():
        y = down(axis, value)
        marks.append(element("line", class_="grid", x1=LEFT, x2=RIGHT, y1=y, y2=y))
        marks.append(element("text", label, x=LEFT - 5, y=round(y + 4.5, 1), text_anchor="end"))
    for value, label in across.ticks():
        if value == int(value):  # steps are whole
            x = right(across, value)
            marks.append(element("line", class_="grid", x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4))
            marks.append(element("text", label, x=x, y=BOTTOM + 17, text_anchor="middle"))
    middle = (TOP + BOTTOM) / 2
    marks.append(element("text", "step", x=RIGHT, y=HEIGHT - 4, text_anchor="end"))
    marks.append(element("text", y_label, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})"))
    return marks


def drawn(s: Series, axis: Axis, across: Axis) -> list[Markup]:
    """The line, in segments where it is interrupted, and its points."""
    segments: list[list[tuple[float, float]]] = [[]]
    crosses = []
    for x, y in zip(s.x, s.y, strict=True):
        if math.isfinite(y):
            segments[-1].append((right(across, x), down(axis, y)))
        else:
            crosses.append(element("text", "×", class_=f"cross {s.style}", x=right(across, x), y=TOP + 8))
            segments.append([])
    marks = []
    for segment in filter(None, segments):
        path = " ".join(f"{x},{y}" for x, y in segment)
        if s.area:
            corners = f"{segment[0][0]},{BOTTOM} {path} {segment[-1][0]},{BOTTOM}"
            marks.append(element("polygon", class_=f"area {s.style}", points=corners))
        elif not s.points:
            marks.append(element("polyline", class_=f"line {s.style}", points=path))
        if s.points or (len(s.x) <= FEW and not s.area):
            marks += [
                element("circle", class_=f"mark {s.style}", cx=x, cy=y, r=5 if s.style == "own" else 2.5)
                for x, y in segment
            ]
    return marks + crosses


def right(across: Axis, x: float) -> float:
    """The SVG's x of a step."""
    return round(LEFT + across.place(x) * (RIGHT - LEFT), 1)


def down(axis: Axis, y: float) -> float:
    """The SVG's y of a value: it grows downwards."""
    return round(BOTTOM - axis.place(y) * (BOTTOM - TOP), 1)
