"""Checkpoints as safetensors and JSON: atomic, the last K and the best one kept, every file with a SHA-256.

A checkpoint is a folder with `weights.safetensors` (parameters and buffers by name), `training.safetensors`
(optimizer state and random generator) and `facts.json` (what else the loop must remember, and the checksums).
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

from recipe.cli import read_run_config
from recipe.config import Config
from recipe.errors import RunError, UserError
from recipe.run_dir import CHECKPOINTS, checkpoint_steps

FILES = ("weights.safetensors", "training.safetensors")


def save(
    run: Path,
    keep_last: int,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    facts: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Write a folder beside, then rename it; then remove what need not be kept. Raises RunError if that fails."""
    folder = run / CHECKPOINTS / str(step)
    beside = run / CHECKPOINTS / f"{step}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, beside / FILES[0])
        save_file(training_tensors(model, optimizers), beside / FILES[1])
        checksums = {name: sha256(beside / name) for name in FILES}
        text = json.dumps({**facts, "step": step, "metrics": metrics, "checksums": checksums}, indent=2)
        (beside / "facts.json").write_text(text + "\n", encoding="utf-8")
        os.replace(beside, folder)
        remove_old(run, keep_last)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(
            f"cannot save the checkpoint of step {step}: {error}; earlier checkpoints are intact: make room and "
            "pass --resume"
        ) from error


def remove_old(run: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` checkpoints and the one with the least validation loss."""
    steps = checkpoint_steps(run)
    losses = {}
    for step in steps:
        metrics = json.loads((run / CHECKPOINTS / str(step) / "facts.json").read_text(encoding="utf-8"))["metrics"]
        if metrics is not None:
            losses[step] = metrics["val_loss"]
    best = min(losses, key=lambda step: losses[step]) if losses else None
    for step in steps[:-keep_last]:
        if step != best:
            shutil.rmtree(run / CHECKPOINTS / str(step))


def restore(run: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> dict[str, Any]:
    """Load one checkpoint into model, optimizers and torch's generator; returns its facts.

    Raises UserError if it cannot be read, does not fit, or a file is not the one that was saved.
    """
    facts = read_facts(run, step)
    weights, training = (read_file(run, step, name, facts) for name in FILES)
    try:
        model.load_state_dict(weights)
        load_training_tensors(model, optimizers, training)
    except (RuntimeError, KeyError) as error:
        raise damaged(run, step, " ".join(str(error).split())[:300]) from error
    return {name: value for name, value in facts.items() if name not in ("step", "metrics", "checksums")}


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
    weights = read_file(run, step, FILES[0], read_facts(run, step))
    return config, {name: tensor.numpy() for name, tensor in weights.items()}


def training_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Optimizer state as "parameter name/state name", and torch's random generator."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {"generator": torch.get_rng_state()}
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
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter_name, key = name.split("/")
        parameter = parameters[parameter_name]
        owners[parameter].state[parameter][key] = tensor


def read_facts(run: Path, step: int) -> dict[str, Any]:
    try:
        facts = json.loads((run / CHECKPOINTS / str(step) / "facts.json").read_text(encoding="utf-8"))
        if set(facts["checksums"]) != set(FILES):
            raise ValueError("facts.json names other files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(run, step, f"facts.json: {error}") from error
    return facts


def read_file(run: Path, step: int, name: str, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    path = run / CHECKPOINTS / str(step) / name
    try:
        if sha256(path) != facts["checksums"][name]:
            raise damaged(run, step, f"{name} is not the file that was saved (its SHA-256 differs)")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(run, step, f"{name}: {error}") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(run: Path, step: int, why: str) -> UserError:
    """What to do about a checkpoint that cannot be used."""
    older = [s for s in checkpoint_steps(run) if s < step]
    mend = f"delete that folder to go back to step {older[-1]}" if older else "there is no older one: start a new run"
    return UserError(f"checkpoint {run / CHECKPOINTS / str(step)} cannot be read: {why}; {mend}")
