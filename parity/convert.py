"""From any format to any other: run directories of both trainers, safetensors, Hugging Face, nanochat.

    jax          a run directory of jax_impl
    torch        a run directory of torch_ref
    safetensors  model.safetensors and config.json: weights only
    hf           what transformers' AutoModelForCausalLM.from_pretrained reads: weights only
    nanochat     model_NNNNNN.pt, meta_NNNNNN.json and optim_NNNNNN_rankN.pt of karpathy/nanochat, November 2025

Between the run directories and nanochat the optimizers' state goes along, so that training continues in the other
framework where it stopped in the one. From weights alone a run starts at step 0.
"""

import os
import shutil
from pathlib import Path

from parity.formats import huggingface, jax_run, nanochat, safetensors_folder, torch_run
from parity.formats.snapshot import Snapshot, optimizer_shapes_of, weight_shapes_of
from twinstep import pretrained
from twinstep.errors import UserError
from twinstep.pretrained.arrays import check_arrays
from twinstep.run_dir import CHECKPOINTS, choose_step

FORMATS = ("jax", "torch", "safetensors", "hf", "nanochat")
OTHER = {"jax": "torch"}  # what a format becomes when nothing else is asked for; all others become jax


def convert(source: Path, out: Path, from_format: str | None, to_format: str | None, step: int | None) -> None:
    """Read one format from `source`, write another to the new folder `out`, whole or not at all.

    Formats left out are detected, and the other framework's. step: the checkpoint to take, the newest when left out.
    Raises UserError for a format that is not known, a source that is incomplete or not of its format, or an `out` that
    holds something.
    """
    from_format = detect(source) if from_format is None else from_format
    to_format = OTHER.get(from_format, "jax") if to_format is None else to_format
    for name, given in (("--from", from_format), ("--to", to_format)):
        if given not in FORMATS:
            raise UserError(f"{name} is {given!r}; it must be one of {', '.join(FORMATS)}")
    if from_format == to_format:
        raise UserError(f"{source} already holds {from_format}; pass another --to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; pass another OUT_DIR")

    snapshot = read(source, from_format, step)
    beside = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}.tmp")
    try:
        beside.mkdir(parents=True)
        write(beside, snapshot, to_format, out)
        os.replace(beside, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; make room, or pass another OUT_DIR") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def detect(source: Path) -> str:
    """The format of a folder. Raises UserError if it is none of ours."""
    format = pretrained.detect(source)
    if format != "run":
        return format
    newest = source / CHECKPOINTS / str(choose_step(source, None))
    return "torch" if (newest / "facts.json").exists() else "jax"


def read(source: Path, format: str, step: int | None) -> Snapshot:
    """One format, checked: every array of the configuration's model is there, of its shape and type, and finite."""
    if step is not None and format in ("safetensors", "hf"):
        raise UserError(f"--step {step} chooses among checkpoints, and {format} holds one model; leave it out")
    match format:
        case "jax":
            snapshot = jax_run.read(source, step)
        case "torch":
            snapshot = torch_run.read(source, step)
        case "safetensors":
            snapshot = safetensors_folder.read(source)
        case "hf":
            snapshot = huggingface.read(source)
        case "nanochat":
            snapshot = nanochat.read(source, step)
        case _:
            raise AssertionError(format)
    config = snapshot.config
    check_arrays(source, snapshot.weights, weight_shapes_of(config), config.param_dtype)
    if snapshot.optimizer is not None:
        check_arrays(source, snapshot.optimizer, optimizer_shapes_of(config), config.param_dtype)
    return snapshot


def write(folder: Path, snapshot: Snapshot, format: str, out: Path) -> None:
    """One format into the empty `folder`, which will be renamed to `out`."""
    match format:
        case "jax":
            jax_run.write(folder, snapshot, out)
        case "torch":
            torch_run.write(folder, snapshot, out)
        case "safetensors":
            safetensors_folder.write(folder, snapshot)
        case "hf":
            huggingface.write(folder, snapshot)
        case "nanochat":
            nanochat.write(folder, snapshot)
        case _:
            raise AssertionError(format)
