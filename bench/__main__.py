"""`python -m bench [--only NAME,...] [--pairs N] [--json FILE] [--upstream DIR] [--tiny]`."""

import importlib
import shlex
from pathlib import Path

from rich.console import Console

from bench.options import BenchOptions, Row
from bench.peak import measure_peak
from bench.report import draw, print_table, write_json
from bench.upstream import check_checkout
from twinstep.cli import parse_flags
from twinstep.errors import UserError, run_command
from twinstep.extras import needs

# The modules, in the order in which they are measured.
MEASUREMENTS = ("step", "classifier", "memory", "startup", "decoding", "growth")


def main(argv: list[str]) -> int:
    options = parse_flags("python -m bench", BenchOptions(), argv)
    names = MEASUREMENTS if options.only is None else options.only.split(",")
    for name in names:
        if name not in MEASUREMENTS:
            raise UserError(f"--only {name}: there is no such measurement; choose from {', '.join(MEASUREMENTS)}")
    needs("torch", "bench")
    if options.upstream is not None:
        check_checkout(options.upstream)
    if options.json is not None and not Path(options.json).resolve().parent.is_dir():
        raise UserError(f"--json {options.json}: its folder does not exist; make it first")

    progress = Console(stderr=True)
    progress.print("measuring the peak ...")
    peak = measure_peak(options.rounds, options.tiny)
    rows: list[Row] = []
    for name in names:
        progress.print(f"measuring {name} ...")
        rows += importlib.import_module(f"bench.{name}").measure(options, max(peak.values()))
    print_table(rows, peak)
    if options.json is not None:
        path = Path(options.json)
        write_json(path, shlex.join(["python", "-m", "bench", *argv]), rows, peak)
        draw(path.with_suffix(".png"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
