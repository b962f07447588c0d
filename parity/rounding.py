"""How a tensor is rounded: by how much two errors may differ by luck, and what an error within budget does not show.

A cast leaves numbers with fewer bits than their type has. A constant that was rounded too early moves all numbers one
way. A copy has no error of which another could be a multiple.
"""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

SAMPLE = 1000  # numbers that are looked at first: those of a whole tensor are seldom all exact, or all narrow


@dataclass(frozen=True)
class Rounding:
    """Of one comparison; it adds up over seeds."""

    elements: int = 0
    apart: float = 0.0  # sum of ((port - truth)^2 - (reference - truth)^2)^2
    lean: float = 0.0  # sum of sign(truth) (reference - truth): away from zero, or towards it
    port_lean: float = 0.0
    exact: bool = False  # whether the reference is everywhere the number of its type that is nearest to the truth
    port_exact: bool = False
    narrow: bool = False  # whether bfloat16 could hold the reference
    port_narrow: bool = False

    def __add__(self, other: "Rounding") -> "Rounding":
        return Rounding(
            self.elements + other.elements,
            self.apart + other.apart,
            self.lean + other.lean,
            self.port_lean + other.port_lean,
            self.exact and other.exact,
            self.port_exact and other.port_exact,
            self.narrow and other.narrow,
            self.port_narrow and other.port_narrow,
        )

    def luck(self, error: float) -> float:
        """By how much of the reference's squared `error` the port's differs by luck: its standard deviation.

        Were both equally good, each number would be as likely to be nearer to the truth on either side. So the sum of
        n differences is as large as the root of the sum of their squares: little where both sides round alike, much
        where a few numbers make up the error.
        """
        return math.sqrt(self.apart) / error if error else 0.0


@np.errstate(over="ignore", invalid="ignore")
def rounding(reference: np.ndarray, port: np.ndarray, truth: np.ndarray) -> Rounding:
    """What is to be seen of two arrays of one type and the truth in float64."""
    wide_truth = np.asarray(truth, np.float64)
    error, port_error = (x.astype(np.float64) - wide_truth for x in (reference, port))
    sign = np.sign(wide_truth)
    found = Rounding(
        elements=reference.size,
        apart=float(np.sum(np.square(np.square(port_error) - np.square(error)))),
        lean=float(np.sum(sign * error)),
        port_lean=float(np.sum(sign * port_error)),
        narrow=reference.dtype == np.float32 and is_narrow(reference),
        port_narrow=port.dtype == np.float32 and is_narrow(port),
    )
    if is_nearest(reference, wide_truth):
        found = replace(found, exact=True, port_exact=is_nearest(port, wide_truth))
    return found


def is_nearest(x: np.ndarray, truth: np.ndarray) -> bool:
    """Whether each number is the nearest of its type to the truth."""
    parts = x.reshape(-1)[:SAMPLE], truth.reshape(-1)[:SAMPLE]
    return all((part == true.astype(x.dtype)).all() for part, true in (parts, (x, truth)))


def is_narrow(x: np.ndarray) -> bool:
    """Whether bfloat16 could hold every number."""
    return all((part.astype(jnp.bfloat16).astype(x.dtype) == part).all() for part in (x.reshape(-1)[:SAMPLE], x))


def fault_of(found: Rounding, own: float, most_lean: float, forward: bool) -> str:
    """What is wrong with how the port rounds many numbers, or "". own: the RMS of the reference's error.

    most_lean: by how much more than the reference's own mean error the port's may be off one way, in units of `own`.
    forward: an activation, which only a copy leaves exact. A gradient may be so by luck: 1/V of equal logits.
    """
    if found.port_narrow and not found.narrow:
        return "every number fits into bfloat16, and those of the reference do not"
    if forward and found.exact and not found.port_exact:
        return "the reference is exact but for one rounding, and the port is not"
    lean = (abs(found.port_lean) - abs(found.lean)) / found.elements
    if own and lean > most_lean * own:
        way = "away from zero" if found.port_lean > 0 else "towards zero"
        return f"the port's errors lean {way}, by {lean / own:.2f} of the reference's more than those of the reference"
    return ""
