"""What a machine with one NVIDIA GPU can tell of this project, in one command, within one budget of time.

    python -m tools.on_gpu --out gpu.json [--minutes 8.5] [--only STEP ...] [--upstream DIR] [--platform cpu]

from the repository's root; JAX and torch must see the GPU. First come the `CHECKS`, beside each other since none is
timed; then, alone, the `TIMED` steps. Each runs in processes of its own with a time limit, and FILE.json is rewritten
after each, so that a run that is cut off loses nothing. All that was printed goes to FILE.log beside it.
`--platform cpu` rehearses the same steps with small sizes. A divergence or a failing test is a finding: exit code 1
means that a step could not be made, 2 bad input.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tools.calls import Calls, StepError
from tools.figures import compare_runs, logged_step, of_run, outcomes
from twinstep.errors import UserError, run_command

Figures = dict[str, Any]

Step = Callable[[Calls, Figures], None]

FRAMEWORKS = {"jax": "jax_impl", "torch": "torch_ref"}
NEEDED = "jax flax optax orbax.checkpoint grain numpy safetensors tokenizers tyro rich matplotlib sklearn pyarrow"
NEEDED += " torch coverage"
TESTS = ["tests/twins/test_losses.py", "tests/twins/test_schedule.py", "tests/twins/test_sampling.py"]
TESTS += [f"tests/jax_impl/test_{n}.py" for n in ("attention", "gpt", "head_loss", "muon", "optimizer", "step")]
TESTS += [f"tests/torch_ref/test_{n}.py" for n in ("checkpoint", "gpt", "muon", "optimizer", "step")]
GPU_TESTS = ["-m", "gpu", "tests/jax_impl", "tests/torch_ref"]
SMALL = "--depth 1 --sequence-len 32 --batch-size 2 --eval-batches 1 --sample-tokens 1"
AT_ONCE = 4  # checks; each compiles, with several threads
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def versions(calls: Calls, figures: Figures) -> None:
    """Versions and devices. Raises UserError where something is missing, so that nothing else is tried."""
    missing = f"from importlib.util import find_spec; print(*[n for n in {NEEDED.split()} if find_spec(n) is None])"
    found = calls.run("-c", missing, limit=30).stdout.decode().split()
    if found:
        raise UserError(f"not installed: {', '.join(found)}; put their wheels' contents on PYTHONPATH")
    figures |= json.loads(calls.run("-m", "tools.installed", limit=90).stdout.splitlines()[-1])
    if calls.platform == "cuda" and (figures["jax backend"] != "gpu" or figures["torch devices"] == ["cpu"]):
        raise UserError(f"JAX runs on {figures['jax devices']} and torch on {figures['torch devices']}, not on a GPU")


def tiny(calls: Calls, figures: Figures) -> None:
    """The trainers as they come, on the default tiny GPT; torch's also where JAX's failed."""
    flags = "--steps 60" if calls.platform == "cuda" else f"--steps 4 {SMALL}"
    errors = []
    for side, package in FRAMEWORKS.items():
        run = calls.folder / f"tiny-{side}"
        try:
            called = calls.run("-m", f"{package}.train", "gpt", *flags.split(), "--out-dir", run, limit=120)
            figures[side] = of_run(run, called)
        except StepError as error:
            errors.append(str(error))
    if errors:
        raise StepError("; ".join(errors))
    figures["loss_difference"] = figures["jax"]["loss"] - figures["torch"]["loss"]


def parity(dtype: str, precision: str, calls: Calls, figures: Figures) -> None:
    """The parity check of the GPT with both frameworks on the device. A divergence is a result, not a failure."""
    steps = 10 if (calls.platform, dtype) == ("cuda", "float64") else 3  # of eight seeds in a lower precision
    folder = calls.folder / f"parity-{dtype}-{precision}"
    words = f"-m parity check gpt --platform {calls.platform} --dtype {dtype} --matmul-precision {precision}"
    calls.run(*words.split(), "--steps", steps, "--out-dir", folder, limit=240, ok=(0, 1))
    result = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    figures |= {name: result[name] for name in ("verdict", "sentence", "first_divergence", "stages", "environment")}


def tests(calls: Calls, figures: Figures) -> None:
    """Our own tests that need a GPU, beside the parity checks; without one, some that do not."""
    chosen, workers = (GPU_TESTS, 2) if calls.platform == "cuda" else (TESTS[:1], 0)
    figures |= run_tests(calls, chosen, workers, limit=150)


def run_tests(calls: Calls, chosen: list[str], workers: int, limit: float) -> Figures:
    """Counts and failures of some of our tests."""
    # No plugins but our own: one that is installed by chance may warn, and warnings are errors.
    words = f"-m pytest -vv -rf --tb=short -p no:cacheprovider -p xdist -n {workers}".split()
    called = calls.run(*words, *chosen, limit=limit, ok=(0, 1), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
                       JAX_ENABLE_COMPILATION_CACHE="0")  # fmt: skip
    return outcomes(called.stdout.decode(errors="replace"))


def kill_and_resume(calls: Calls, figures: Figures) -> None:
    """A run, and one like it ended by kill -9 half way and resumed: the same metrics and the same final bits?

    XLA's kernels for a GPU sum in a fixed order only where they are told to.
    """
    steps, every = (600, 100) if calls.platform == "cuda" else (12, 2)
    flags = f"--steps {steps} --save-every {every} --log-every {every // 2} "
    flags += SMALL if calls.platform == "cpu" else "--eval-batches 2 --sample-tokens 1"
    whole, killed = calls.folder / "whole", calls.folder / "killed"
    train = partial(calls.run, "-m", "jax_impl.train", *flags.split(), limit=120, XLA_FLAGS=DETERMINISTIC)
    train("--out-dir", whole)
    half_way = lambda: logged_step(killed) > steps // 2
    ended = train("--out-dir", killed, until=half_way).exit_code
    at = logged_step(killed)
    train("--out-dir", killed, "--resume")
    figures |= {"XLA_FLAGS": DETERMINISTIC, "first attempt ended": ended, "at step": at, **compare_runs(whole, killed)}


def training(calls: Calls, figures: Figures) -> None:
    """Two minutes of a GPT of a size that people train, in bfloat16: nanochat's depth 12, and how busy the GPU was."""
    size = "--depth 12 --d-model 768 --head-dim 128 --vocab-size 32768 --sequence-len 2048 --batch-size 32 "
    size += "--steps 700 --log-every 10 --eval-batches 1 --sample-tokens 1"
    size = size if calls.platform == "cuda" else f"--steps 6 --log-every 1 {SMALL}"
    run = calls.folder / "training"
    words = ("gpt", "--dtype", "bfloat16", "--matmul-precision", "default", *size.split(), "--out-dir", run)
    figures |= of_run(run, calls.run("-m", "jax_impl.train", *words, limit=180))


def bench(calls: Calls, figures: Figures) -> None:
    """Step, memory, decoding and start beside torch_ref, in what is left of the time."""
    path = calls.folder / "bench.json"
    size = ("--minutes", calls.minutes_left() - 0.3) if calls.platform == "cuda" else ("--tiny",)
    size = (*size, *(("--upstream", calls.upstream) if calls.upstream else ()))
    calls.run("-m", "bench", "--platform", calls.platform, "--json", path, *size, limit=600)
    figures |= json.loads(path.read_text(encoding="utf-8"))


CHECKS: dict[str, Step] = {
    "parity-float64": partial(parity, "float64", "highest"),
    "parity-float32": partial(parity, "float32", "highest"),
    "parity-tf32": partial(parity, "float32", "default"),
    "parity-bfloat16": partial(parity, "bfloat16", "default"),
    "tests": tests,
    "kill-and-resume": kill_and_resume,
    "tiny": tiny,
}
TIMED: dict[str, Step] = {"training": training, "bench": bench}
STEPS = {"versions": versions, **CHECKS, **TIMED}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: list[str]) -> int:
    parser = Parser(prog="python -m tools.on_gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", required=True, metavar="FILE.json", type=Path)
    parser.add_argument("--minutes", type=float, default=8.5, metavar="M", help="for all steps together (default 8.5)")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help=f"some of {', '.join(STEPS)}")
    parser.add_argument("--upstream", metavar="DIR", help="a checkout of nanochat (November 2025) for the bench")
    parser.add_argument("--platform", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse (default cuda)")
    args = parser.parse_args(argv)
    if args.out.suffix != ".json" or not args.out.parent.is_dir():
        raise UserError(f"--out is {args.out}; it must be a .json file in a folder that exists")
    if args.minutes <= 0:
        raise UserError(f"--minutes is {args.minutes}; it must be more than 0")
    started, log = time.monotonic(), args.out.with_suffix(".log")
    report = {"platform": args.platform, "gpu": nvidia_smi() if args.platform == "cuda" else None, "steps": []}
    log.write_text("", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        deadline = started + 60 * args.minutes
        env = environment(args.platform, folder)
        calls = Calls(args.platform, Path(folder), log, deadline, env, args.upstream)
        for step in make_steps(calls, args.only or list(STEPS)):
            report["steps"].append(step)
            report["seconds"] = round(time.monotonic() - started, 1)
            args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
            print(line_of(step), flush=True)
    return 1 if any("error" in step for step in report["steps"]) else 0


def make_steps(calls: Calls, names: list[str]) -> Iterator[dict[str, Any]]:
    """The entries of these steps in the report as they are made: the checks beside each other, all others alone."""
    yield from (make_step(calls, name, STEPS[name]) for name in names if name not in CHECKS and name not in TIMED)
    with ThreadPoolExecutor(AT_ONCE if calls.platform == "cuda" else 1) as pool:
        checks = [pool.submit(make_step, replace(calls), name, STEPS[name]) for name in names if name in CHECKS]
        yield from (done.result() for done in as_completed(checks))
    yield from (make_step(calls, name, STEPS[name]) for name in names if name in TIMED)


def environment(platform: str, folder: str) -> dict[str, str]:
    """For every process: where it runs, and caches that end with the report. Compiled programs serve later steps."""
    here = (
        {"JAX_PLATFORMS": "cuda,cpu", "OMP_NUM_THREADS": "4"}
        if platform == "cuda"
        else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    )
    caches = {"XDG_CACHE_HOME": f"{folder}/cache", "JAX_COMPILATION_CACHE_DIR": ""}
    # Without preallocation nvidia-smi shows what a step needs, and JAX and torch share the GPU.
    return {**here, **caches, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "MPLBACKEND": "Agg", "COLUMNS": "120"}


def make_step(calls: Calls, name: str, make: Step) -> dict[str, Any]:
    """One step's entry in the report: its figures or its error, and the commands it ran."""
    calls.entries, started = [], time.monotonic()
    step: dict[str, Any] = {"name": name, "figures": {}}
    try:
        make(calls, step["figures"])
    except (StepError, OSError, ValueError, LookupError) as error:  # what it wrote may be cut off
        step["error"] = str(error) or type(error).__name__
    return {**step, "seconds": round(time.monotonic() - started, 1), "calls": calls.entries}


def line_of(step: dict[str, Any]) -> str:
    """One step for people."""
    figures, head = step["figures"], f"{step['name']:>16} {step['seconds']:6.1f} s  "
    if "error" in step:
        return head + "NOT MADE: " + step["error"]
    match step["name"]:
        case "tiny":
            return head + ", ".join(f"{side} loss {figures[side]['loss']:.4f}" for side in FRAMEWORKS)
        case "training":
            return head + f"{figures['tokens_per_second']:,.0f} tokens/s, loss {figures['loss']:.3f}"
        case "bench":
            return head + f"{len(figures['rows'])} rows; left out: {figures['left_out'] or 'nothing'}"
        case "parity-float64" | "parity-float32" | "parity-tf32" | "parity-bfloat16":
            return head + figures["sentence"]
        case "kill-and-resume":
            bits = "the same bits" if figures["same_bits"] else "OTHER bits"
            return head + f"killed at step {figures['at step']} and resumed: {bits}"
        case "tests":
            return head + f"{figures['passed']} passed, {figures['failed']} failed: {', '.join(figures['failures'])}"
    return head + ", ".join(f"{name} {value}" for name, value in figures.items())


def nvidia_smi() -> str:
    """Name, driver and memory of the GPU. Raises UserError where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise UserError("no nvidia-smi here, so no NVIDIA GPU; --platform cpu rehearses the steps without one")
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"nvidia-smi finds no GPU: {(done.stdout + done.stderr).strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
