"""What a ledger holds: comparisons by stage, tensor and start, each summed up over the seeds."""

from dataclasses import dataclass
from typing import NamedTuple

from parity.budget import MANY, MOST_LUCK, Error, Tolerance
from parity.result import Diagnosis
from parity.rounding import Rounding

GIVEN = "given"  # from the user's own weights
INITS = ("nonzero", "native", GIVEN)  # the order in which they are checked, and blamed


class Key(NamedTuple):
    """One tensor of one stage from one initialization. `unit` groups what can be compared in size."""

    stage: str
    tensor: str
    init: str
    unit: str = ""
    group: str = ""


@dataclass
class Entry:
    """One key at one step, over all seeds."""

    error: Error
    elements: int
    eps: float
    tolerance: Tolerance
    scale: float = 0.0  # squared
    seeds: int = 1
    note: str = ""
    diagnosis: Diagnosis | None = None  # of the first seed, where rounding does not explain the error
    rounding: Rounding | None = None  # where errors are compared as a ratio

    @property
    def many(self) -> bool:
        """Whether the ratio of the errors, over all seeds, is made of so many numbers that it is no luck."""
        luck = self.rounding.luck(self.error.reference) if self.rounding else 0.0
        return self.elements * self.seeds >= MANY and luck <= MOST_LUCK
