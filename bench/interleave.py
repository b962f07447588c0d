"""Interleaved samples, and their medians, quartiles and ratios pair by pair."""

import math
import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

from bench.process import Sample, Worker

# torch's OpenMP threads go on spinning for up to 0.2 s after their work, on cores that the next side needs.
PAUSE_SECONDS = 0.3
QUIET = 0.1  # cores that others may keep busy before a round counts as disturbed
TRIES = 3  # rounds at most, for each one asked for


class Quartiles(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def quartiles(values: Iterable[float]) -> Quartiles:
    values = list(values)
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)


def interleave(
    workers: dict[str, Worker], pairs: int, warmups: int = 3, deadline: float = math.inf
) -> dict[str, list[Sample]]:
    """Lets each worker work in turn, `pairs` times after `warmups`.

    Rounds that other processes disturbed are tried again, up to TRIES times as many; of all rounds the least disturbed
    are kept, so what is chosen doesn't depend on what was measured. After the deadline no round begins but the first.
    """
    for worker in workers.values():
        for _ in range(warmups):
            worker.work()
    rounds: list[dict[str, Sample]] = []
    in_time = lambda: not rounds or time.monotonic() < deadline
    while in_time() and len(rounds) < pairs * TRIES and sum(disturbance(r) <= QUIET for r in rounds) < pairs:
        current = {}
        for name, worker in workers.items():
            time.sleep(PAUSE_SECONDS)
            current[name] = worker.work()
        rounds.append(current)
    kept = sorted(rounds, key=disturbance)[:pairs]
    return {name: [current[name] for current in kept] for name in workers}


def per_step(samples: dict[str, list[Sample]], steps: dict[str, int]) -> dict[str, list[Sample]]:
    """Samples of one step, from samples of as many steps as each side took in a row."""
    return {
        side: [s._replace(seconds=s.seconds / steps[side], cpu_seconds=s.cpu_seconds / steps[side]) for s in found]
        for side, found in samples.items()
    }


def disturbance(samples: dict[str, Sample]) -> float:
    """Cores that others kept busy in the worst moment of a round."""
    return max(sample.others or 0.0 for sample in samples.values())


def ratios(samples: list[Sample], reference: list[Sample]) -> Quartiles:
    """How many times as long as the reference's, round by round."""
    return quartiles(ours.seconds / theirs.seconds for ours, theirs in zip(samples, reference, strict=True))
