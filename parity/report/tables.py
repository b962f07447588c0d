"""The parts that pages are made of: the frame, tables in boxes that scroll, heat maps."""

from collections.abc import Mapping, Sequence

from parity.report.heat import HeatMap
from parity.report.markup import Markup, element, join
from parity.report.style import STYLE
from parity.report.text import NONE

# No script and nothing from outside: whatever a name might smuggle in, a browser neither runs nor fetches it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, *body: Markup) -> str:
    """A whole document."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', element('main', *body)), lang='en')}\n"


def section(title: str, *children: object) -> Markup:
    """A part of the page under a heading."""
    return element("section", element("h2", title), *children)


# Columns of text that may be broken, and of text that may not; all others hold numbers.
WORDS = ("worst tensor", "how it is wrong", "furthest off", "in PyTorch", "in JAX", "why", "about", "reason")
NAMES = ("stage", "verdict", "group", "init", "steps", "model", "expected", "found", "outcome")


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table whose first column names its rows. A column that says nothing in any row is left out."""
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] not in ("", NONE) for row in rows)]
    head, rows = [head[i] for i in keep], [[row[i] for i in keep] for row in rows]
    classes = [None if name in NAMES else "words" if name in WORDS else "number" for name in head]
    classes[0] = None
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row", class_="key" if head[0] in NAMES else None),
            *(
                element("td", value, class_=c, data_label=name)
                for value, c, name in zip(row[1:], classes[1:], head[1:], strict=True)
            ),
        )
        for row in rows
    ]
    titles = [element("th", name, scope="col", class_=c) for name, c in zip(head, classes, strict=True)]
    return box(
        caption,
        element(
            "table",
            element("caption", element("span", caption)),
            element("thead", element("tr", *titles)),
            element("tbody", join(lines)),
        ),
    )


def box(label: str, content: Markup) -> Markup:
    """What may be wider than a phone scrolls by itself, by keyboard too."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def heat_table(heat: HeatMap, corner: str, caption: str) -> Markup:
    """Colour and text say the same; the worst comparison behind a cell is its tooltip."""
    lines = []
    for row in heat.rows:
        cells = []
        for column in heat.columns:
            cell = heat.cells.get((row, column))
            if cell is None:
                cells.append(element("td"))
            else:
                cells.append(element("td", cell.text, class_=f"heat{cell.level}", title=cell.detail, data_label=column))
        lines.append(element("tr", element("th", row, scope="row"), *cells))
    titles = [element("th", name, scope="col") for name in (corner, *heat.columns)]
    return box(
        caption,
        element(
            "table",
            element("caption", element("span", caption)),
            element("thead", element("tr", *titles)),
            element("tbody", join(lines)),
            class_="heat",
        ),
    )


def heat_legend(names: Mapping[int, str]) -> Markup:
    """What the colours of some levels mean, in words."""
    marks = [element("li", element("span", name, class_=f"heat{level}")) for level, name in names.items()]
    return element("ul", *marks, class_="legend")


def facts(caption: str, values: dict[str, object]) -> Markup:
    """Names and values."""
    rows = [element("tr", element("th", k, scope="row"), element("td", v)) for k, v in values.items()]
    body = element("table", element("caption", element("span", caption)), element("tbody", join(rows)), class_="facts")
    return box(caption, body)
