"""Which files of jax_impl hold arithmetic, and the configurations that together run all of it."""

from fnmatch import fnmatch
from pathlib import Path

import jax_impl
from parity.result import NotRun

ROOT = Path(jax_impl.__file__).parent

# They start a program, show, store or compile for machines elsewhere: no number of a run comes from them.
PROGRAM = (
    "__init__.py",
    "aot/*",
    "compilation_cache.py",
    "cpu.py",
    "devices.py",
    "plot.py",
    "processes.py",
    "profile.py",
    "train.py",
)

# The configurations that together run all of it, by the words that follow `parity check`.
CHUNKS = (
    "gpt --sequence-len 513 --vocab-size 32768 --depth 1 --d-model 32 --head-dim 16 --kv-heads 1 --batch-size 1 "
    "--accumulation 1 --steps 3"
)
FSDP, FSDP_WHOLE, PMAP, SIGMOID = (
    "gpt --parallel fsdp --devices 4 --batch-size 8",
    "linear --parallel fsdp --devices 4",  # no dimension of its bias is a multiple of 4
    "gpt --devices 2",
    "linear --dataset breast_cancer --head sigmoid",
)
CONFIGURATIONS = (
    "gpt",
    "gpt --sequence-len 320 --optimizer adamw --accumulation 1 --remat --decay-schedule constant --steps 3",
    CHUNKS,
    f"{FSDP} --steps 3",
    f"{PMAP} --steps 3",
    "linear",
    f"{FSDP_WHOLE} --steps 3",
    SIGMOID,
    "embedding --matrix-optimizer sgd",
    "mlp",
    "mlp --no-shared-dropout",
    "mlp --devices 2",
)

# File, function, and what would run it; the first that matches.
ELSEWHERE = (
    ("models/splash.py", "*", "a TPU"),
    ("models/cudnn.py", "*", "an NVIDIA GPU"),
    ("mesh.py", "torus_shape", "a TPU"),
    ("mesh.py", "make_mesh", "a TPU"),
    ("parallel.py", "attention", "an accelerator"),
    ("optimizer.py", "newton_schulz_dtype", "an accelerator"),
    ("decoding.py", "_transpose", "an accelerator"),
    ("optimizer.py", "group_norms", "several processes"),
    ("parallel.py", "_place_examples", "several processes"),
)

# Functions beside the arithmetic in its files: they start programs, read files, choose for the trainer, or are there
# for programs of one's own. Of a function with a derivative of its own that stands only in a loss, the body never runs.
BESIDE = (
    ("checkpoint.py", ("load_params", "read_weights", "read_weights.read", "attempt", "open_manager")),
    ("checksum.py", ("numpy_checksum",)),
    ("generate.py", ("sample_text", "generate_text", "tokens_from_run", "open_run", "main")),
    ("head_loss.py", ("large_logits", "capped_cross_entropy")),
    ("parallel.py", ("set_precision", "choose_mode")),
    ("step.py", ("scan_train_steps",)),
)


# File, function, and the configuration that runs it; the first that matches. All else is for `check all` to run.
WHAT_RUNS = (
    *((file, "*", FSDP) for file in ("fsdp.py", "mesh.py", "stacks.py", "models/block_scan.py")),
    ("parallel.py", "fsdp*", FSDP),
    ("parallel.py", "_place_examples", FSDP),
    ("parallel.py", "*", PMAP),
    ("head_loss.py", "*", CHUNKS),
    ("losses.py", "*", SIGMOID),
    ("models/mlp.py", "*", "mlp"),
    ("models/batch_norm.py", "*", "mlp"),
    ("models/embedding.py", "*", "embedding"),
    ("models/linear.py", "*", "linear"),
    *((file, "*", "gpt") for file in ("decoding.py", "generate.py", "sampling.py", "models/[abcg]*.py")),
)


def files() -> list[Path]:
    """The files of jax_impl that hold arithmetic."""
    relative = (path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py")))
    return [ROOT / path for path in relative if not any(fnmatch(path.as_posix(), glob) for glob in PROGRAM)]


def is_beside(missing: NotRun) -> bool:
    """Whether the function is no part of the arithmetic."""
    return any(missing.file == file and missing.function in functions for file, functions in BESIDE)


def needs(missing: NotRun) -> str:
    """What a function or its lines need beyond CPUs and one process; "" for what a check can run anywhere."""
    for file, function, what in ELSEWHERE:
        if fnmatch(missing.file, file) and fnmatch(missing.function, function):
            return what
    return ""


def what_runs(missing: NotRun) -> str:
    """The check that would run it, or what it needs."""
    if what := needs(missing):
        return f"needs {what}"
    for file, function, words in WHAT_RUNS:
        if missing.whole and fnmatch(missing.file, file) and fnmatch(missing.function, function):
            return f"python -m parity check {words}"
    return "python -m parity check all"
