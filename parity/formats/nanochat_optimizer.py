"""Optimizer files of nanochat, November 2025 (nanochat/adamw.py, nanochat/muon.py, nanochat/gpt.py).

optim_NNNNNN_rankN.pt is a list of two state_dicts: AdamW with the head as parameter 0 and the embedding as 1, and
Muon with the matrices of the blocks in groups of one size (one process) or one shape (several), each in the order
of the layers. Of several processes each wrote its own file: AdamW's moments are sharded by rows, each of
Muon's buffers is in the file of one of them. We write the file of one process.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity.formats.files import read_torch
from parity.formats.snapshot import STATE, Shape, Snapshot, as_numpy, weight_shapes_of
from torch_ref.optimizer import optimizer_groups
from twinstep.config import Config, OptimizerConfig
from twinstep.errors import UserError

ADAMW = ("lm_head.weight", "wte.weight")
BLOCK = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")  # as upstream declares them


def read(source: Path, step: int, config: Config) -> dict[str, np.ndarray] | None:
    """ "parameter/state name" -> array; None if there are no such files, or nothing in them yet.

    Raises UserError if they are incomplete or do not fit the model.
    """
    paths = rank_files(source, step)
    if not paths or step == 0:
        return None
    states: list[Any] = [read_torch(path) for path in paths]
    for path, state in zip(paths, states, strict=True):
        if not (
            isinstance(state, list) and len(state) == 2 and all(set(s) == {"state", "param_groups"} for s in state)
        ):
            raise UserError(f"{path} holds no list of AdamW's and Muon's state: another nanochat's is not supported")
    try:
        tensors = gather_adamw([adamw["state"] for adamw, _ in states], step)
        tensors |= gather_muon([muon for _, muon in states], config)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{paths[0]} does not hold what nanochat writes ({error!r}); copy it again") from error
    except UserError as error:
        raise UserError(f"{paths[0]}: {error}") from error
    return as_numpy(paths[0], tensors, "float32")


def rank_files(source: Path, step: int) -> list[Path]:
    """The files of all processes, in their order. Raises UserError if one is missing."""
    found = {int(path.stem.partition("_rank")[2]): path for path in source.glob(f"optim_{step:06d}_rank*.pt")}
    for rank in range(max(found, default=-1)):
        if rank not in found:
            raise UserError(f"{source} has no optim_{step:06d}_rank{rank}.pt; copy the files of all ranks")
    return [found[rank] for rank in sorted(found)]


def gather_adamw(states: list[dict[int, Any]], step: int) -> dict[str, torch.Tensor]:
    """AdamW's moments, rows of all processes joined."""
    tensors = {}
    for index, name in enumerate(ADAMW):
        if int(states[0][index]["step"]) != step:
            raise UserError(f"AdamW has counted {int(states[0][index]['step'])} steps of {name} at step {step}")
        for key in STATE["adamw"]:
            tensors[f"{name}/{key}"] = torch.cat([state[index][key] for state in states])
    return tensors


def gather_muon(parts: list[dict[str, Any]], config: Config) -> dict[str, torch.Tensor]:
    """Muon's buffers of all processes."""
    buffers = {index: part["state"][index]["momentum_buffer"] for part in parts for index in part["state"]}
    shapes = matrix_shapes(config)
    tensors: dict[str, torch.Tensor] = {}
    for group in parts[0]["param_groups"]:
        shape = tuple(buffers[group["params"][0]].shape)
        same_size = [name for name in shapes if math.prod(shapes[name]) == math.prod(shape)]
        same_shape = [name for name in shapes if shapes[name] == shape]
        names = same_size if len(same_size) == len(group["params"]) else same_shape
        if len(names) != len(group["params"]):
            raise UserError(f"Muon has {len(group['params'])} matrices like {shape}, the model {len(same_shape)}")
        tensors |= {f"{name}/momentum_buffer": buffers[i] for name, i in zip(names, group["params"], strict=True)}
    return tensors


def matrix_shapes(config: Config) -> dict[str, Shape]:
    """Shapes of the matrices that Muon trains, in the order of upstream's parameters."""
    shapes = weight_shapes_of(config)
    depth = sum(name.endswith(".attn.c_q.weight") for name in shapes)
    return {(name := f"h.{layer}.{part}.weight"): shapes[name] for layer in range(depth) for part in BLOCK}


def write(folder: Path, snapshot: Snapshot) -> bool:
    """Write the file of one process into `folder`; False, and none, where other optimizers were at work."""
    o = snapshot.config.optimizer
    if snapshot.optimizer is None or (o.optimizer, o.matrix_optimizer) != ("muon", "muon"):
        return False
    tensors = {name: torch.from_numpy(array.copy()) for name, array in snapshot.optimizer.items()}
    state = [adamw_state(snapshot, tensors), muon_state(snapshot.config, tensors)]
    torch.save(state, folder / f"optim_{snapshot.step:06d}_rank0.pt")
    return True


def adamw_state(snapshot: Snapshot, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The state_dict of torch.optim.AdamW over two groups, the head's and the embedding's."""
    o, groups = snapshot.config.optimizer, optimizer_groups(snapshot.config)
    parameters = {name: torch.nn.Parameter(torch.zeros_like(tensors[f"{name}/exp_avg"])) for name in ADAMW}
    rates = {"lm_head.weight": groups["head"].learning_rate, "wte.weight": groups["embedding"].learning_rate}
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[name]], "lr": rates[name], "initial_lr": rates[name]} for name in ADAMW],
        betas=(o.beta1, o.beta2),
        eps=o.eps,
        weight_decay=o.weight_decay,
        fused=True,
    )
    for name, parameter in parameters.items():
        moments = {key: tensors[f"{name}/{key}"] for key in STATE["adamw"]}
        optimizer.state[parameter] = {"step": torch.tensor(float(snapshot.step)), **moments}
    return optimizer.state_dict()


def muon_state(config: Config, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The state_dict of upstream's Muon."""
    o: OptimizerConfig = config.optimizer
    shapes = matrix_shapes(config)
    state: dict[int, dict[str, torch.Tensor]] = {}
    groups = []
    # Upstream iterates over a set of sizes, so the order of its groups is that of a set made in the same way.
    for size in {math.prod(shape) for shape in shapes.values()}:
        names = [name for name, shape in shapes.items() if math.prod(shape) == size]
        indices = list(range(len(state), len(state) + len(names)))
        settings = {"lr": o.matrix_lr, "momentum": o.momentum_end, "nesterov": True, "ns_steps": o.newton_schulz_steps}
        groups.append({**settings, "initial_lr": o.matrix_lr, "params": indices})
        state |= {
            i: {"momentum_buffer": tensors[f"{name}/momentum_buffer"]} for i, name in zip(indices, names, strict=True)
        }
    return {"state": state, "param_groups": groups}
