"""Checkpoints as safetensors and JSON: atomic, the last --keep-last and the best one kept, every file with a SHA-256.

A checkpoint is a folder with `weights.safetensors` (parameters and buffers by name), `training.safetensors`
(optimizer state and random generators) and `facts.json` (what else the loop must remember, see `twinstep.progress`, and
the checksums).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from twinstep.cli import read_run_config
from twinstep.config import Config
from twinstep.errors import RunError, UserError
from twinstep.progress import Facts, check_config, check_sums, seal, unseal
from twinstep.run_dir import (
    CHECKPOINTS,
    cannot_save,
    choose_step,
    damaged,
    new_folder,
    sha256,
    sync,
    write_atomically,
)

FILES = ("weights.safetensors", "training.safetensors")
FACTS = "facts.json"
OTHERS = "_CHECKPOINT_METADATA"  # only a checkpoint of jax_impl has it


def save(run: Path, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], facts: Facts) -> None:
    """Write a temporary folder, then rename it.

    Raises RunError if that fails, or if a number is not finite: training cannot go on from such a checkpoint, and it
    would push an older, usable one out of --keep-last.
    """
    weights, training = split_state(model, optimizers)
    arrays = weights | training
    finite = {name: tensor.isfinite().all() for name, tensor in arrays.items()}
    for name in arrays:
        if not finite[name]:
            raise RunError(f"step {step}: {name} is not finite, so it is not saved; earlier checkpoints are intact")
    try:
        with new_folder(run / CHECKPOINTS / str(step)) as folder:
            for name, tensors in zip(FILES, (weights, training), strict=True):
                save_file(tensors, folder / name)
                sync(folder / name)
            sums = {name: sha256(folder / name) for name in FILES}
            facts = seal({**facts, "checksums": sums})
            write_atomically(folder / FACTS, json.dumps(facts, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise cannot_save(step, error) from error


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

    They are NumPy arrays, whatever devices they were saved from. Raises UserError if there is no such run or
    checkpoint, or it is damaged.
    """
    config = read_run_config(run)
    step = choose_step(run, step)
    facts = read_facts(run, step)
    check_config(facts, config, run)
    return config, read_weights(run, step, facts)


def read_facts(run: Path, step: int) -> Facts:
    """The facts of a checkpoint. Raises UserError if they are not there or not those that were saved."""
    folder = run / CHECKPOINTS / str(step)
    if (folder / OTHERS).exists():
        raise UserError(f"{run} is a run of jax_impl; python -m parity convert {run} OUT_DIR makes one of torch_ref")
    try:
        return unseal(json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise damaged(run, step, f"{FACTS}: {error}") from error


def read_weights(run: Path, step: int, facts: Facts) -> dict[str, np.ndarray]:
    """Parameters and buffers by name. Raises UserError if they are not those that were saved."""
    return {name: tensor.numpy() for name, tensor in read_file(run, step, FILES[0], facts).items()}


def read_file(run: Path, step: int, name: str, facts: Facts) -> dict[str, torch.Tensor]:
    """The tensors of one file. Raises UserError if it is not the one that was saved."""
    path = run / CHECKPOINTS / str(step) / name
    try:
        sums = {name: sha256(path)}
        check_sums(facts, sums, run, step)
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(run, step, f"{name}: {error}") from error


def split_state(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of `weights.safetensors` and of `training.safetensors`, by name."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    training = training_tensors(model, optimizers)
    return weights, training


def training_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Optimizer state as "parameter name/state name", and torch's random generators."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {"generator": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda_generator"] = torch.cuda.get_rng_state()
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if value is not None:  # SGD without momentum keeps a buffer of None
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
        owner = owners[parameter]
        # AdamW's count of steps stays on the CPU, but not where the fused kernel reads it.
        moves = tensor.ndim > 0 or owner.defaults.get("fused")
        owner.state[parameter][key] = tensor.to(parameter.device) if moves else tensor
