"""What every format holds of a model, in NumPy and under torch's names, and the shapes of its arrays."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from torch_ref.models import make_model, weight_shapes
from torch_ref.optimizer import label_parameters, optimizer_groups
from twinstep.config import Config, CorpusConfig, DeviceConfig, OutputConfig
from twinstep.errors import UserError
from twinstep.progress import Facts

# The state that each algorithm keeps for a parameter, under torch's names; all of the parameter's shape.
STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",), "sgd": ()}

Shape = tuple[int, ...]


class Snapshot(NamedTuple):
    """A model at one step of its training.

    config: sizes filled in. step: optimizer steps done, 0 where `optimizer` is None. weights: parameters and buffers
    by name. optimizer: "parameter/state name" -> array, None where there is none yet. facts: see
    `twinstep.progress`; None in formats that have none. tokenizer: the text of tokenizer.json. files: what a run
    directory holds beside, by name.
    """

    config: Config
    step: int
    weights: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray] | None = None
    facts: Facts | None = None
    tokenizer: str | None = None
    files: Mapping[str, bytes] = {}


def without_places(config: Config) -> Config:
    """A configuration as it leaves this machine: what was computed, but not from which folders and where to."""
    data = config.data
    if isinstance(data, CorpusConfig):
        data = replace(data, data=None, cache_dir=None)
    train = replace(config.train, init_from=None)
    return replace(config, data=data, train=train, devices=DeviceConfig(), output=OutputConfig())


def weight_shapes_of(config: Config) -> dict[str, Shape]:
    """Name -> shape of every parameter and buffer of a configuration's model.

    Raises UserError if a size is left to the data.
    """
    for size in ("vocab_size", "features", "classes"):
        if getattr(config.model, size, 0) is None:
            raise UserError(f"the configuration leaves {size} open; write the model's own into it")
    with torch.device("meta"):  # no array is allocated
        return weight_shapes(make_model(config))


def optimizer_shapes_of(config: Config) -> dict[str, Shape]:
    """Name -> shape of the state that the optimizers of a configuration keep."""
    with torch.device("meta"):
        parameters = {name: tuple(p.shape) for name, p in make_model(config).named_parameters()}
    groups, labels = optimizer_groups(config), label_parameters(config, list(parameters))
    return {
        f"{name}/{state}": shape
        for name, shape in parameters.items()
        for state in STATE[groups[labels[name]].algorithm]
    }


def as_numpy(where: object, tensors: Mapping[str, torch.Tensor], dtype: str) -> dict[str, np.ndarray]:
    """Tensors as arrays of `dtype`, where that loses nothing: bfloat16 and float16 widen to float32 exactly.

    Raises UserError naming the first tensor of another type.
    """
    narrow = {"float32": (torch.bfloat16, torch.float16, torch.float32), "float64": (torch.float64,)}[dtype]
    arrays = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in narrow:
            held = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: {name} has dtype {held}, which is not {dtype} nor widens to it")
        arrays[name] = tensor.detach().cpu().to(getattr(torch, dtype)).contiguous().numpy()
    return arrays
