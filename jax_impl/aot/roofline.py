"""How long a step takes at least: by arithmetic, by memory traffic and by the network between the chips.

A bound, not a forecast: every unit at its peak, and the three overlapping perfectly.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jax_impl.aot.hlo import Collective
from twinstep.chips import Chip


class Roofline(NamedTuple):
    """Seconds per step, each at its own ceiling. Only the longest counts when all overlap."""

    compute: float
    memory: float
    network: float

    @property
    def step(self) -> float:
        """Seconds of a step at least: of the unit that takes longest."""
        return max(self)

    @property
    def bound_by(self) -> str:
        """The unit that takes longest."""
        return max(zip(self, self._fields, strict=True))[1]

    @property
    def efficiency(self) -> float:
        """The share of the step in which the matrix units would be busy."""
        return self.compute / self.step


def roofline(
    chip: Chip, sides: Sequence[int], flops: float, memory_bytes: float, exchanges: Sequence[Collective]
) -> Roofline:
    """flops, memory_bytes: of one chip in one step. sides: of the torus of chips; of GPUs, (domains, GPUs of each)."""
    seconds = torus_seconds if chip.dims else switch_seconds
    network = sum(seconds(chip, sides, exchange) for exchange in exchanges)
    return Roofline(flops / chip.flops, memory_bytes / chip.bandwidth, network)


def torus_seconds(chip: Chip, sides: Sequence[int], exchange: Collective) -> float:
    """Seconds of one kind of exchange on rings in both directions along every side of the torus.

    An all-gather or reduce-scatter takes the array's bytes over the rate of all rings, an all-reduce twice that; in an
    all-to-all each byte of a chip travels a quarter of the longest ring
    ("How to Scale Your Model", jax-ml.github.io/scaling-book, chapter "Sharded Matrices").
    """
    both_ways = 2 * chip.link
    if exchange.kind in ("all-gather", "reduce-scatter"):
        return exchange.bytes / (both_ways * len(sides))
    if exchange.kind == "all-reduce":
        return 2 * exchange.bytes / (both_ways * len(sides))
    if exchange.kind == "all-to-all":
        return exchange.bytes * max(sides) / (4 * both_ways)
    return exchange.bytes / chip.link  # collective-permute: to a neighbour


def switch_seconds(chip: Chip, sides: Sequence[int], exchange: Collective) -> float:
    """Seconds of one kind of exchange among the GPUs of several NVLink domains, each around a switch.

    In an all-gather or reduce-scatter a GPU takes what the others of its domain hold over NVLink, while the domain
    takes what the others hold over the adapters of all its GPUs; the slower counts. An all-reduce is both, and in an
    all-to-all each GPU sends its own share ("How to Scale Your Model", jax-ml.github.io/scaling-book, chapter "GPUs").
    """
    domains, gpus = sides
    if exchange.kind == "all-to-all":
        within = exchange.bytes * (gpus - 1) / (domains * gpus) / chip.link
        return max(within, exchange.bytes * (domains - 1) / domains / chip.network)
    if exchange.kind == "collective-permute":
        return exchange.bytes / (chip.network if domains > 1 else chip.link)
    within = exchange.bytes * (gpus - 1) / gpus / chip.link
    between = exchange.bytes * (domains - 1) / domains / (gpus * chip.network)
    return max(within, between) * (2 if exchange.kind == "all-reduce" else 1)
