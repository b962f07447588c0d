"""HTML elements whose text is escaped unless it is an element itself: nothing can be forgotten."""

from collections.abc import Iterable
from html import escape

from parity.report.text import printable

VOID = ("meta", "img", "line", "rect", "path", "polyline", "polygon", "circle")


class Markup(str):
    """Text that is HTML already."""


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attributes>children</name>.

    Attributes that are None are left out; an underscore at the end of a name is dropped (class_), others become
    hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """One after the other; what is not Markup is escaped."""
    return Markup("".join(c if isinstance(c, Markup) else escape(printable(c)) for c in children))
