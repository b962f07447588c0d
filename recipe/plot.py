"""Pictures of loss curves, for one run or several overlaid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipe.run_dir import read_metrics


def smooth(values: np.ndarray, weight: float = 0.9) -> np.ndarray:
    """Exponential moving average with bias correction: out[i] = sum_j w^(i-j) v[j] / sum_j w^(i-j)."""
    smoothed = np.empty_like(values, dtype=np.float64)
    total = norm = 0.0
    for i, value in enumerate(values):
        total, norm = weight * total + value, weight * norm + 1
        smoothed[i] = total / norm
    return smoothed


def plot_loss(runs: Sequence[Path], out: Path) -> None:
    """Draw training loss, raw and smoothed, and validation loss of each run into a PNG.

    Raises UserError if a run has no metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, run in enumerate(runs):
        records = read_metrics(run)
        color = f"C{number % 10}"
        name = run.name if len(runs) > 1 else ""
        train = np.array([[r["step"], r["loss"]] for r in records if "loss" in r]).reshape(-1, 2)
        held_out = np.array([[r["step"], r["val_loss"]] for r in records if "val_loss" in r]).reshape(-1, 2)
        axes.plot(train[:, 0], train[:, 1], color=color, alpha=0.25, linewidth=1)
        axes.plot(train[:, 0], smooth(train[:, 1]), color=color, label=f"{name} training, smoothed".strip())
        axes.plot(
            held_out[:, 0], held_out[:, 1], color=color, linestyle="--", marker="o", label=f"{name} validation".strip()
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per target)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)
    plt.close(figure)
