"""From the samples of all sides to the lines of the table."""

from collections.abc import Callable
from dataclasses import replace

from bench.interleave import quartiles, ratios
from bench.options import Row
from bench.process import Sample


def rows_of(
    work: str,
    samples: dict[str, list[Sample]],
    unit: str,
    value: Callable[[Sample], float],
    seconds_at_peak: float | None = None,
) -> list[Row]:
    """A row for each side; the first side is the reference, and ratios say how many times as long the others take.

    value: what is shown of a sample, in `unit`. seconds_at_peak: how long the work's matrix products would take at
    the measured peak.
    """
    reference = next(iter(samples.values()))
    rows = []
    for side, found in samples.items():
        shown = quartiles(value(sample) for sample in found)
        longer = None if found is reference else ratios(found, reference)
        seconds = quartiles(sample.seconds for sample in found).median
        row = Row(work, side, shown.median, shown.low, shown.high, unit)
        rows.append(
            replace(
                row,
                ratio=longer and longer.median,
                ratio_low=longer and longer.low,
                ratio_high=longer and longer.high,
                peak_share=seconds_at_peak and seconds_at_peak / seconds,
                others=quartiles(sample.others or 0.0 for sample in found).median,
                extra={"seconds": [s.seconds for s in found], "cpu_seconds": [s.cpu_seconds for s in found]},
            )
        )
    return rows
