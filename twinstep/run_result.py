"""What `train(config)` returns: where the run is, how it ended, and its curves."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from twinstep.run_dir import read_metrics


@dataclass(frozen=True)
class RunResult:
    """A run that has ended.

    run: its directory. step: the optimizer steps taken. exit_code: 0, or 130 where Ctrl-C ended it.
    """

    run: Path
    step: int
    exit_code: int = 0

    @cached_property
    def metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """metrics.jsonl by name: the steps (n,) int64 at which it was logged, and its values (n,) float64.

        For instance `plt.plot(*result.metrics["loss"])`. Raises UserError if the file cannot be read.
        """
        curves: dict[str, list[tuple[int, float]]] = {}
        for record in read_metrics(self.run):
            for name, value in record.items():
                if name != "step":
                    curves.setdefault(name, []).append((record["step"], value))
        return {
            name: (np.array([step for step, _ in curve]), np.array([value for _, value in curve], np.float64))
            for name, curve in curves.items()
        }
