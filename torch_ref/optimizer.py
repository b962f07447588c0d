"""Which parameter gets which optimizer: labels by name, a list of optimizers, clipping before all."""

import re
from typing import NamedTuple

import torch
from torch import nn

from torch_ref.muon import Muon
from torch_ref.schedule import decay_multiplier, lr_multiplier, muon_momentum
from twinstep.config import Config, GPTConfig
from twinstep.errors import UserError

# Every parameter's whole name matches one pattern, and every pattern at least one parameter.
LABELS: dict[str, dict[str, str]] = {
    "gpt": {
        r"wte\.weight": "embedding",
        r"h\.\d+\.(attn\.c_[qkv]|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight": "matrix",
        r"lm_head\.weight": "head",
    },
    "linear": {r"linear\.weight": "matrix", r"linear\.bias": "vector"},
    "embedding": {r"embedding\.weight": "embedding", r"linear\.weight": "matrix"},
    "mlp": {r"fc[12]\.weight": "matrix", r"fc2\.bias|norm\.(weight|bias)": "vector"},
}


class Group(NamedTuple):
    """What one label's parameters get."""

    algorithm: str  # "muon", "sgd" or "adamw"
    learning_rate: float  # peak rate
    weight_decay: float  # decoupled, multiplied by the rate


def label_parameters(config: Config, names: list[str]) -> dict[str, str]:
    """Name -> label. Raises UserError unless each name matches one pattern and each pattern some name."""
    patterns = LABELS[config.model_name]
    labels = {}
    for name in names:
        found = [label for pattern, label in patterns.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise UserError(f"parameter {name!r} matches {len(found)} optimizer patterns; it must match one")
        labels[name] = found[0]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise UserError(f"optimizer pattern {pattern!r} matches no parameter")
    return labels


def optimizer_groups(config: Config) -> dict[str, Group]:
    """Label -> Group. Under `--optimizer adamw` all labels get the one AdamW; vectors are never decayed."""
    o = config.optimizer
    if o.optimizer == "adamw":
        weights = Group("adamw", o.adamw_lr, o.weight_decay)
        groups = {"embedding": weights, "matrix": weights, "head": weights}
    else:
        # Upstream tuned the rates of embedding and head at width 768; they fall as its root.
        width_scale = (config.model.width / 768) ** -0.5 if isinstance(config.model, GPTConfig) else 1.0
        groups = {
            "embedding": Group("adamw", o.embedding_lr * width_scale, o.weight_decay),
            "matrix": Group(o.matrix_optimizer, o.matrix_lr, o.matrix_weight_decay),
            "head": Group("adamw", o.head_lr * width_scale, o.weight_decay),
        }
    return {**groups, "vector": Group("adamw", o.adamw_lr, 0.0)}


def clip_by_global_norm(model: nn.Module, max_norm: float) -> torch.Tensor:
    """All gradients times min(1, max_norm / (norm + 1e-6)), and the norm before clipping. max_norm 0: no clipping."""
    limit = max_norm if max_norm > 0 else float("inf")
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)


def setup_optimizers(config: Config, model: nn.Module) -> list[torch.optim.Optimizer]:
    """One AdamW with a param group per label, and one Muon or SGD for the matrices; the loop steps each.

    Each param group keeps its peak rate, decay and label beside torch's own settings, for `set_schedule`.
    """
    o = config.optimizer
    labels = label_parameters(config, [name for name, _ in model.named_parameters()])
    by_algorithm: dict[str, list[dict]] = {"adamw": [], "muon": [], "sgd": []}
    for label, group in optimizer_groups(config).items():
        params = [p for name, p in model.named_parameters() if labels[name] == label]
        if params:
            by_algorithm[group.algorithm].append(
                {
                    "params": params,
                    "lr": group.learning_rate,
                    "weight_decay": group.weight_decay,
                    "peak_lr": group.learning_rate,
                    "peak_decay": group.weight_decay,
                    "label": label,
                }
            )
    optimizers: list[torch.optim.Optimizer] = []
    if by_algorithm["adamw"]:
        fused = next(model.parameters()).is_cuda  # one kernel for all parameters
        adamw = torch.optim.AdamW(by_algorithm["adamw"], betas=(o.beta1, o.beta2), eps=o.eps, fused=fused)
        optimizers.append(adamw)
    if by_algorithm["muon"]:
        dtype, steps = newton_schulz_dtype(config), o.newton_schulz_steps
        muon = Muon(by_algorithm["muon"], o.matrix_lr, o.momentum_start, 0.0, steps=steps, dtype=dtype)
        if config.devices.compile:
            muon.orthogonalize = torch.compile(muon.orthogonalize, dynamic=False)
        optimizers.append(muon)
    if by_algorithm["sgd"]:
        # Without momentum, torch's L2 decay and decoupled decay are the same: p <- p - lr (g + wd p).
        optimizers.append(torch.optim.SGD(by_algorithm["sgd"]))
    return optimizers


def set_schedule(config: Config, optimizers: list[torch.optim.Optimizer], step: int) -> float:
    """Write this step's rate, decay and momentum into every param group; returns the logged rate (the matrices')."""
    o, steps = config.optimizer, config.train.steps
    multiplier = lr_multiplier(o, steps, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * multiplier
            group["weight_decay"] = group["peak_decay"] * decay_multiplier(o, steps, step)
            if isinstance(optimizer, Muon):
                group["momentum"] = muon_momentum(o, step)
    return (o.adamw_lr if o.optimizer == "adamw" else o.matrix_lr) * multiplier


def group_norms(
    optimizers: list[torch.optim.Optimizer], before: dict[nn.Parameter, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`param_norm/LABEL` and `update_norm/LABEL`: the L2 norm of all of a label's parameters, and of what was added.

    before: every parameter as it was before the optimizers stepped, of which `param_norm` is.
    """
    norms = {}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        updates = [p.detach() - before[p] for p in group["params"]]
        norms[f"param_norm/{group['label']}"] = torch.nn.utils.get_total_norm(before[p] for p in group["params"])
        norms[f"update_norm/{group['label']}"] = torch.nn.utils.get_total_norm(updates)
    return dict(sorted(norms.items()))


def newton_schulz_dtype(config: Config) -> torch.dtype:
    """The dtype of the orthogonalization; see `OptimizerConfig.newton_schulz_dtype`."""
    if config.optimizer.newton_schulz_dtype != "auto":
        return getattr(torch, config.optimizer.newton_schulz_dtype)
    if config.train.dtype == "float64":
        return torch.float64
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
