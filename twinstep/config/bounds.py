"""The range of every number in a configuration: the check, its message and the tests read one table, `BOUNDS`."""

from typing import Any, NamedTuple

from twinstep.errors import UserError


class Bound(NamedTuple):
    """A numeric range; `open_low` and `open_high` leave out the end itself."""

    low: float
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range; infinity and NaN never do."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and value != float("inf")  # NaN fails both comparisons

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {self.low}"
        if self.high == float("inf"):
            return low
        return f"{low} and {'less than' if self.open_high else 'at most'} {self.high}"


POSITIVE = Bound(0, open_low=True)
COUNT = Bound(1, 2**31 - 1)  # steps are counted in 32 bits
NATURAL = Bound(0)
FRACTION = Bound(0, 1)
BELOW_ONE = Bound(0, 1, open_high=True)


def flag(name: str) -> str:
    """The command-line flag of a field: `batch_size` is --batch-size."""
    return "--" + name.replace("_", "-")


def check_bounds(config: Any) -> None:
    """Raises UserError for the first numeric field of a config outside its bound; None means 'not given'."""
    for name, bound in config.BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not bound.holds(value):
            raise UserError(f"{flag(name)} is {value}; it must be {bound}")


def check_text(name: str, text: str) -> None:
    """Raises UserError if text from the command line is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{flag(name)} is not UTF-8 text; check the terminal's encoding") from None


def check_shards(batch_size: int, accumulation: int, shards: int, unit: str = "devices") -> None:
    """Raises UserError unless every device (or process) gets the same number of examples of a micro-step."""
    micro_batch = batch_size // accumulation
    if micro_batch % shards:
        raise UserError(
            f"--batch-size {batch_size} / --accumulation {accumulation} = {micro_batch} is not divisible by {shards} "
            f"{unit}; pass a multiple of {shards * accumulation}, or change the number of {unit}"
        )
