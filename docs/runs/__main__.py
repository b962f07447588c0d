"""Run the scripts behind the pages and keep what they print: `python -m docs.runs [NAME ...]`, all when none is named.

NAME is a script of this folder; its output goes to docs/output/NAME.txt, its pictures to docs/images. Those BY_HAND run
only when they are named, and the tests leave them out: they need packages that the project does not.
"""

import os
import subprocess
import sys
from pathlib import Path

from twinstep.errors import run_command
from twinstep.extras import needs

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "output"
BY_HAND = {"trl_sft"}


def names() -> list[str]:
    return sorted({path.stem for path in HERE.glob("[a-z]*.py")} - BY_HAND)


def run(name: str) -> str:
    """What a script prints, in a process of its own. Raises RuntimeError with its traceback if it fails."""
    environment = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, "-m", f"docs.runs.{name}"]
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"docs/runs/{name}.py failed:\n{done.stderr}")
    return done.stdout


def main(argv: list[str]) -> int:
    for package in ("torch", "transformers"):
        needs(package, "docs.runs")
    for name in argv or names():
        (OUTPUT / f"{name}.txt").write_text(run(name))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
