"""The four models as torch.nn.Module."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from torch_ref.models.embedding import EmbeddingModel
from torch_ref.models.gpt import GPT
from torch_ref.models.linear import LinearClassifier
from torch_ref.models.mlp import MLPClassifier
from twinstep.config import Config, EmbeddingConfig, GPTConfig, LinearConfig, MLPConfig

# BatchNorm's count of batches: only torch has it, and it is read only where momentum is None, which ours never is.
TORCH_ONLY = "num_batches_tracked"


def make_model(config: Config) -> nn.Module:
    """The model that a configuration asks for; its sizes must be filled in. Weights are torch's own initialization."""
    dtype, param_dtype = getattr(torch, config.train.dtype), getattr(torch, config.param_dtype)
    match config.model:
        case GPTConfig():
            return GPT(config.model, dtype=dtype, param_dtype=param_dtype, remat=config.train.remat)
        case LinearConfig():
            return LinearClassifier(config.model, dtype=dtype, param_dtype=param_dtype)
        case EmbeddingConfig():
            return EmbeddingModel(config.model, dtype=dtype, param_dtype=param_dtype)
        case MLPConfig():
            return MLPClassifier(config.model, dtype=dtype, param_dtype=param_dtype)


def forward(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The logits of one micro-batch."""
    if "tokens" in batch:
        return model(batch["tokens"])
    if "dropout_mask" in batch:
        return model(batch["inputs"], batch["dropout_mask"])
    return model(batch["inputs"])


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter and buffer that the two frameworks share."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(TORCH_ONLY)}


@torch.no_grad()
def load_weights(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy NumPy arrays by name into a model, in its dtypes. Raises KeyError for a name that is missing."""
    for name, tensor in model.state_dict().items():
        if not name.endswith(TORCH_ONLY):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))
