"""Loss curves of one run, or of several overlaid: `python -m jax_impl.plot RUN... [--out FILE]`.

The runs may be those of either framework.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from twinstep.cli import parse_flags
from twinstep.errors import UserError, run_command
from twinstep.plot import plot_loss


@dataclass(frozen=True)
class PlotOptions:
    """What to draw, and where to."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run directories."""
    out: str = "loss.png"
    """Picture to write: .png, .pdf or .svg."""


def main(argv: list[str]) -> int:
    options = parse_flags("python -m jax_impl.plot", PlotOptions(), argv)
    if not options.runs:
        raise UserError("no run to plot; pass one run directory or several")
    plot_loss([Path(run) for run in options.runs], Path(options.out))
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
