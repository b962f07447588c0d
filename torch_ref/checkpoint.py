"""Checkpoints as safetensors and JSON: atomic, the last K and the best one kept, every file with a SHA-256.

A checkpoint is a folder with `weights.safetensors` (parameters and buffers by name), `training.safetensors`
(optimizer state and random generators) and `facts.json` (what else the loop must remember, see `twinstep.progress`, and
the checksums).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from twinstep import run_dir
from twinstep.cli import read_run_config
from twinstep.config import Config
from twinstep.errors import RunError, UserError
from twinstep.progress import Facts, check_config, seal, unseal
from twinstep.run_dir import CHECKPOINTS, checkpoint_steps, write_atomically

FILES = ("weights.safetensors", "training.safetensors")


def save(run: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], facts: Facts) -> None:
    """Write a folder beside, then rename it.

    Raises RunError if that fails, or if a number is not finite: what could not be trained from must not take the
    place of what can.
    """
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    training = training_tensors(model, optimizers)
    for name, tensor in (weights | training).items():
        if not tensor.isfinite().all():
            raise RunError(f"step {step}: {name} is not finite, so it is not saved; earlier checkpoints are intact")
    folder = run / CHECKPOINTS / str(step)
    beside = run / CHECKPOINTS / f"{step}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, tensors in zip(FILES, (weights, training), strict=True):
            save_file(tensors, beside / name)
            sync(beside / name)
        facts = seal({**facts, "checksums": {name: sha256(beside / name) for name in FILES}})
        write_atomically(beside / "facts.json", json.dumps(facts, indent=2) + "\n")
        os.replace(beside, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(
            f"cannot save the checkpoint of step {step}: {error}; earlier checkpoints are intact: make room and "
            "pass --resume"
        ) from error


def remove_old(run: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` whole checkpoints and the best of which the newest of them knows."""
    steps = checkpoint_steps(run)
    if len(steps) > keep_last:
        run_dir.remove_old(run, keep_last, read_facts(run, steps[-1])["best_step"])


def restore(run: Path, config: Config, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> Facts:
    """Load one checkpoint into model, optimizers and torch's generators; returns its facts.

    Raises UserError if it cannot be read, does not fit, belongs to another configuration, or a file is not the one
    that was saved.
    """
    facts = read_facts(run, step)
    check_config(facts, config, run)
    weights, training = (read_file(run, step, name, facts) for name in FILES)
    try:
        model.load_state_dict(weights)
        load_training_tensors(model, optimizers, training)
    except (RuntimeError, KeyError) as error:
        raise damaged(run, step, " ".join(str(error).split())[:300]) from error
    del facts["checksums"]
    return facts


def load_params(run: Path, step: int | None = None) -> tuple[Config, dict[str, np.ndarray]]:
    """A run's configuration, and parameters and buffers by name, of one step or the newest.

    Raises UserError if there is no such run or checkpoint, or it is damaged.
    """
    config = read_run_config(run)
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(f"{run} has no finished checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; there are {steps}")
    step = steps[-1] if step is None else step
    facts = read_facts(run, step)
    check_config(facts, config, run)
    return config, {name: tensor.numpy() for name, tensor in read_file(run, step, FILES[0], facts).items()}


def read_facts(run: Path, step: int) -> Facts:
    """The facts of a checkpoint. Raises UserError if they are not there or not those that were saved."""
    folder = run / CHECKPOINTS / str(step)
    if (folder / "_CHECKPOINT_METADATA").exists():
        raise UserError(f"{run} is a run of jax_impl; python -m parity convert {run} OUT_DIR makes one of torch_ref")
    try:
        return unseal(json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise damaged(run, step, f"facts.json: {error}") from error


def training_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Optimizer state as "parameter name/state name", and torch's random generators."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {"generator": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda_generator"] = torch.cuda.get_rng_state()
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value is not None:  # SGD without momentum notes a buffer of None
                    tensors[f"{names[parameter]}/{key}"] = torch.as_tensor(value).contiguous()
    return tensors


def load_training_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> None:
    """The inverse of `training_tensors`. Raises KeyError for the state of a parameter that is not there."""
    tensors = dict(tensors)
    torch.set_rng_state(tensors.pop("generator"))
    cuda_generator = tensors.pop("cuda_generator", None)
    if cuda_generator is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_generator)
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, key = name.split("/")
        parameter = parameters[parameter_name]
        # AdamW's count of steps stays on the CPU.
        owners[parameter].state[parameter][key] = tensor.to(parameter.device) if tensor.ndim else tensor


def read_file(run: Path, step: int, name: str, facts: Facts) -> dict[str, torch.Tensor]:
    """The tensors of one file. Raises UserError if it is not the one that was saved."""
    path = run / CHECKPOINTS / str(step) / name
    try:
        if sha256(path) != facts.get("checksums", {}).get(name):
            raise damaged(run, step, f"{name} is not the file that was saved (its SHA-256 differs)")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(run, step, f"{name}: {error}") from error


def sha256(path: Path) -> str:
    """The hash of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk: the folder's new name must not get there before them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def damaged(run: Path, step: int, why: str) -> UserError:
    """What to do about a checkpoint that cannot be used."""
    older = [s for s in checkpoint_steps(run) if s < step]
    mend = f"delete that folder to go back to step {older[-1]}" if older else "there is no older one: start a new run"
    return UserError(f"checkpoint {run / CHECKPOINTS / str(step)} cannot be read: {why}; {mend}")
