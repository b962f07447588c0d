"""What runs on the versions that are installed here: one row of the table on the page about versions.

    python -m tools.versions --out docs/runs/stacks/NAME.json [--minutes 10] [--platform cuda] [--tests PATH ...]

from the repository's root, with the Python of the environment in question; torch may be missing. The JSON is rewritten
after each step, so that a run that is cut off keeps its row, and all that was printed goes to a .log beside it. Then
`python -m docs.runs versions` makes the table of all rows. Exit code 1 means that something failed, 2 bad input.
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools.calls import Called, Calls
from tools.figures import read_metrics
from tools.on_gpu import FRAMEWORKS, SMALL, TESTS, Figures, environment, make_step, nvidia_smi, run_tests
from twinstep.config import MODELS
from twinstep.errors import UserError, run_command

SIDES = {side: package for side, package in FRAMEWORKS.items() if find_spec(side)}
WORKERS = min(6, os.cpu_count() or 1)
WARNING = re.compile(r"\b[A-Z]\w*Warning: .*")


def versions(calls: Calls, figures: Figures) -> None:
    """Versions and devices."""
    figures |= json.loads(calls.run("-m", "tools.installed", limit=90).stdout.splitlines()[-1])


def train(calls: Calls, figures: Figures) -> None:
    """Four steps of every model in every framework that is installed; the last losses."""
    flags = {model: SMALL if model == "gpt" else "--batch-size 8 --eval-batches 1" for model in MODELS}
    runs = [(side, model, calls.folder / f"{side}-{model}") for side in SIDES for model in MODELS]
    at_once(
        calls, (f"{SIDES[side]}.train {model} --steps 4 {flags[model]} --out-dir {run}" for side, model, run in runs)
    )
    for side, model, run in runs:
        figures.setdefault(side, {})[model] = [line["loss"] for line in read_metrics(run) if "loss" in line][-1]


def generate(calls: Calls, figures: Figures) -> None:
    """Eight tokens after a prompt, by the GPT of each framework; how many characters were written."""
    words = (f"{package}.generate --run {calls.folder}/{side}-gpt --prompt import --max-tokens 8"
             for side, package in SIDES.items())  # fmt: skip
    for side, called in zip(SIDES, at_once(calls, words), strict=True):
        figures[side] = len(called.stdout.decode(errors="replace"))


def parity_check(calls: Calls, figures: Figures) -> None:
    """The parity check of every model; its verdict."""
    folders = {model: calls.folder / f"parity-{model}" for model in MODELS if "torch" in SIDES}
    at_once(calls, (f"parity check {m} --dtype float64 --steps 3 --out-dir {f}" for m, f in folders.items()), ok=(0, 1))
    for model, folder in folders.items():
        figures[model] = json.loads((folder / "parity.json").read_text(encoding="utf-8"))["verdict"]


def our_tests(calls: Calls, figures: Figures, paths: Sequence[str] = TESTS) -> None:
    """Tests; without torch those that need none."""
    chosen = [path for path in paths if "torch" in SIDES or "torch_ref" not in path]
    figures |= {"paths": paths, **run_tests(calls, chosen, WORKERS, limit=3600)}


STEPS: dict[str, Callable[[Calls, Figures], None]] = {
    "versions": versions,
    "train": train,
    "generate": generate,
    "parity_check": parity_check,
    "tests": our_tests,
}


def at_once(calls: Calls, commands: Iterable[str], ok: tuple[int, ...] = (0,)) -> list[Called]:
    """`python -m` several commands, as many at a time as there are cores."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda words: calls.run("-m", *words.split(), limit=600, ok=ok), commands))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("row.json"), metavar="FILE.json", help="FILE.log beside it")
    parser.add_argument("--minutes", type=float, default=20.0, help="end after that many minutes (default 20)")
    parser.add_argument("--platform", choices=("cuda", "cpu"), default="cpu", help="(default cpu)")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="make these steps again in a row that is there")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help="(default: those of the arithmetic)")
    args = parser.parse_args(argv)
    if args.out.suffix != ".json" or not args.out.parent.is_dir():
        raise UserError(f"--out is {args.out}; it must be a .json file in a folder that exists")
    if args.minutes <= 0:
        raise UserError(f"--minutes is {args.minutes}; it must be more than 0")
    if args.only and not args.out.is_file():
        raise UserError(f"there is no row {args.out}; leave --only out")
    log, deadline = args.out.with_suffix(".log"), time.monotonic() + 60 * args.minutes
    row: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.only else {}
    before = row.get("versions", {})
    row |= {"date": str(date.today()), "gpu": nvidia_smi() if args.platform == "cuda" else None}
    log.write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        # Python shows each warning once, and the row has them all.
        shown = {**environment(args.platform, folder), "PYTHONWARNINGS": "default"}
        calls = Calls(args.platform, Path(folder), log, deadline, shown)
        steps = {**STEPS, "tests": partial(our_tests, paths=args.tests)}
        for name in ("versions", *args.only) if args.only else steps:
            row[name] = step_of_row(calls, name, steps[name])
            row["warnings"] = sorted({*row.get("warnings", ()), *WARNING.findall(log.read_text(encoding="utf-8"))})
            if any(row["versions"].get(key) != value for key, value in before.items() if key != "seconds"):
                raise UserError(f"{args.out} is of other versions; leave --only out")
            args.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(row[name]), flush=True)
    return 0 if fine(row) else 1


def step_of_row(calls: Calls, name: str, make: Any) -> dict[str, Any]:
    """What a step found, or why it was not made; how long it took."""
    step = make_step(calls, name, make)
    return {**step["figures"], **({"not_made": step["error"]} if "error" in step else {}), "seconds": step["seconds"]}


def fine(row: dict[str, Any]) -> bool:
    """Whether all that was run did what it should."""
    parts = [part for part in row.values() if isinstance(part, dict)]
    agrees = all(row["parity_check"].get(model, "agrees") == "agrees" for model in MODELS)
    return agrees and not any("not_made" in part or part.get("failed") or part.get("error") for part in parts)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
