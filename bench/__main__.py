"""`python -m bench [--platform cpu|cuda] [--only NAME,...] [--pairs N] [--minutes M] [--json FILE] ...`."""

import importlib
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from bench.options import Bench, BenchOptions, OutOfTimeError, Row
from bench.peak import measure_peak
from bench.process import ENVIRONMENT
from bench.report import draw, print_table, write_json
from bench.upstream import check_checkout
from twinstep.chips import chip_of
from twinstep.cli import parse_flags
from twinstep.errors import UserError, run_command
from twinstep.extras import needs

# The modules, in the order in which they are measured: on a GPU the memory is that of the step.
MEASUREMENTS = {
    "cpu": ("step", "classifier", "memory", "startup", "decoding", "growth"),
    "cuda": ("step", "decoding", "startup"),
}


def main(argv: list[str]) -> int:
    options = parse_flags("python -m bench", BenchOptions(), argv)
    known = MEASUREMENTS[options.platform]
    names = known if options.only is None else options.only.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: there is no such measurement; choose from {', '.join(known)}")
    needs("torch", "bench")
    if options.platform == "cuda":
        check_gpu()
    if options.upstream is not None:
        check_checkout(options.upstream)
    if options.json is not None and not Path(options.json).resolve().parent.is_dir():
        raise UserError(f"--json {options.json}: its folder does not exist; make it first")

    deadline = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes
    progress = Console(stderr=True)
    progress.print("measuring the peak ...")
    peak, device = measure_peak(options)
    chip = chip_of(device)
    bench = Bench(options, max(peak.values()), chip.flops if chip else None, deadline)
    rows: list[Row] = []
    left_out = []
    for name in names:
        progress.print(f"measuring {name} ...")
        try:
            bench.check_time()
            for row in importlib.import_module(f"bench.{name}").measure(bench):
                rows.append(row)
        except OutOfTimeError:
            left_out.append(name)
    print_table(rows, peak, device, left_out)
    if options.json is not None:
        path = Path(options.json)
        write_json(path, shlex.join(["python", "-m", "bench", *argv]), rows, peak, device, left_out)
        draw(path.with_suffix(".png"), rows)
    return 0


def check_gpu() -> None:
    """Raises UserError unless both frameworks see an NVIDIA GPU; JAX is asked in a process of its own."""
    import torch

    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    env = {**os.environ, **ENVIRONMENT["cuda"]}
    jax = subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.strip()
    if jax != "gpu" or not torch.cuda.is_available():
        torch_has = "one" if torch.cuda.is_available() else "none"
        raise UserError(
            f"--platform cuda: JAX runs on {jax or 'nothing'}, and torch sees {torch_has}; both need the GPU (JAX: "
            "pip install -e '.[cuda13]')"
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
