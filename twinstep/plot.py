"""Pictures of loss curves, for one run or several overlaid."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twinstep.errors import UserError
from twinstep.run_dir import read_metrics, write_atomically


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving average s[i] = w s[i-1] + (1 - w) v[i], whose mean age, w / (1 - w) values, is i / 10 and at most 9.

    So the beginning, where the loss falls fast, does not weigh on what follows: behind a straight line the average lags
    by at most a tenth of the fall so far. After 90 values it is the exponential moving average with w = 0.9.
    """
    smoothed = np.empty_like(values, dtype=np.float64)
    average = 0.0
    for i, value in enumerate(values):
        age = min(i / 10, 9.0)
        weight = age / (1 + age)  # 0 for the first value
        average = weight * average + (1 - weight) * value
        smoothed[i] = average
    return smoothed


def plot_loss(runs: Sequence[Path], out: Path) -> None:
    """Draw training loss, raw and smoothed, and validation loss of each run into a PNG, PDF or SVG file.

    The suffix of `out` names the format. Raises UserError if a run has no metrics or `out` cannot be written.
    """
    import matplotlib

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports its font cache, once per machine
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    all_records = [read_metrics(run) for run in runs]
    names = [""] if len(runs) == 1 else distinct_names(runs)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, records in enumerate(all_records):
        color = f"C{number % 10}"
        name = names[number]
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
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=120, format=out.suffix.removeprefix(".").lower())
        write_atomically(out, picture.getvalue())
    except ValueError:
        raise UserError(f"{out} has no suffix of a picture; pass one that ends in .png, .pdf or .svg") from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; make room, or pass another place") from error
    finally:
        plt.close(figure)


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
