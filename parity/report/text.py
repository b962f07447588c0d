"""Numbers and names as a reader of any report sees them."""

import math
from collections.abc import Sequence

from parity.result import Diagnosis

NONE = "–"  # a value that does not apply


def printable(text: object) -> str:
    """Text without what could steer a terminal or reorder a line: such characters appear as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def number(x: float | None) -> str:
    """Two or three digits: 1.1e-15, 0.54, 15."""
    if x is None:
        return NONE
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞"
    if x == 0:
        return "0"
    if 0.01 <= x < 999.5:
        return f"{x:.2g}" if x < 99.5 else f"{x:.0f}"
    digits, exponent = f"{x:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def ratio(x: float | None) -> str:
    """err(port) / err(reference): near one for a good port, so two decimals."""
    return f"{x:.2f}" if x is not None and 0.01 <= x < 1000 else number(x)


def share(x: float) -> str:
    """How much of a budget is used: percent up to all of it, and how many times the budget beyond."""
    if x > 1 and math.isfinite(x):
        return f"{x:.2g} ×" if x < 100 else f"{number(x)} ×"
    if x == 0 or not math.isfinite(x):
        return number(x)
    if x < 1e-4:
        return "< 0.01 %"
    return f"{100 * x:.2g} %" if x < 0.1 else f"{100 * x:.0f} %"


def duration(seconds: float) -> str:
    """2 min 5 s, or 3.2 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def count(n: int, one: str, many: str = "") -> str:
    """1 seed, 8 seeds."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def elide(text: str, width: int) -> str:
    """The start and the end of a text that is too long for a picture."""
    return text if len(text) <= width else f"{text[: width // 2 - 1]}…{text[len(text) - (width - width // 2) :]}"


def at(d: Diagnosis) -> str:
    """An index, or that there is one number only."""
    return f"[{', '.join(map(str, d.index))}]" if d.index else "its one number"


def near_one(x: float | None) -> str:
    """A ratio of norms or a cosine, which may be off from 1 or -1 by little."""
    if x is None:
        return NONE
    off = abs(abs(x) - 1)
    if off >= 1e-4:
        return f"{x:.4f}" if 0.001 <= abs(x) < 1000 else f"{x:.3g}"
    sign = "+" if abs(x) > 1 else "-"
    whole = f"1 {sign} {number(off)}" if off > 1e-13 else "1"
    return whole if x > 0 else f"-({whole})" if off > 1e-13 else "-1"


def values(d: Diagnosis) -> tuple[str, str]:
    """The reference's value and the port's, with as many digits as tell them apart."""
    digits = next((n for n in range(3, 17) if f"{d.reference:.{n}g}" != f"{d.port:.{n}g}"), 17)
    return f"{d.reference:.{digits + 1}g}", f"{d.port:.{digits + 1}g}"


def worst_element(d: Diagnosis, sides: Sequence[str] = ("PyTorch", "JAX")) -> str:
    """Both values, and where. sides: a result's."""
    reference, port = values(d)
    return f"{reference} in {sides[0]}, {port} in {sides[1]} at {at(d)}"
