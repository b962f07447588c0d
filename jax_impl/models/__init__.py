"""The four models, split once into a graph definition and plain nested dicts of arrays.

Every key of the dicts is a string, and the keys joined with dots are torch's `state_dict` names, so that the
bridge between the frameworks is the identity.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_impl.models.attention import causal_attention
from jax_impl.models.batch_norm import BatchNorm
from jax_impl.models.embedding import EmbeddingModel
from jax_impl.models.gpt import GPT, CausalSelfAttention
from jax_impl.models.layers import Module
from jax_impl.models.linear import LinearClassifier
from jax_impl.models.mlp import MLPClassifier
from jax_impl.tree import Tree, flatten, unflatten
from twinstep.config import Config, EmbeddingConfig, GPTConfig, LinearConfig, MLPConfig

# Flax's names for BatchNorm's arrays, and torch's.
TORCH_NAMES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}
FLAX_NAMES = {torch: flax for flax, torch in TORCH_NAMES.items()}


class Model(NamedTuple):
    """A module's structure without its arrays. `params` and `buffers` are trees of jax.ShapeDtypeStruct."""

    graphdef: Any
    params: Tree
    buffers: Tree
    param: Callable[[str, jax.Array], nnx.Param] = lambda name, array: nnx.Param(array)  # wraps an array for `bind`

    def bind(self, params: Tree, buffers: Tree, *, train: bool) -> Any:
        """The module with these arrays in it, in train or in eval mode; call it inside a trace."""
        states = _state(params, self.param), _state(buffers, lambda name, array: nnx.BatchStat(array))
        module = nnx.merge(self.graphdef, *states)
        module.train() if train else module.eval()
        return module

    def buffers_of(self, module: Any) -> Tree:
        """The buffers of a bound module, updated by its call in train mode."""
        return _tree(nnx.state(module, nnx.BatchStat))


def make_model(
    config: Config,
    axis_name: str | tuple[str, ...] | None = None,
    attention: Callable[..., jax.Array] = causal_attention,
    scan_blocks: bool = False,
) -> Model:
    """The model that a configuration asks for; its sizes must be filled in. No array is allocated.

    axis_name: the mapped axes over which BatchNorm takes its statistics. attention: gpt's, without a cache.
    scan_blocks: gpt's blocks as one loop over their weights (`block_scan.py`).
    """
    module = nnx.eval_shape(lambda: make_module(config))
    for path, part in nnx.iter_modules(module):
        if isinstance(part, Module):
            part.path = ".".join(map(str, path)) or "logits"  # the model's own output
        if isinstance(part, CausalSelfAttention):
            part.attention = attention
        if isinstance(part, GPT):
            part.scan_blocks = scan_blocks
        if isinstance(part, BatchNorm):
            part.axis_name = axis_name  # type: ignore[assignment]  # of one name, for Flax; JAX takes several
    graphdef, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    params, buffers = states
    # Flax makes running statistics float32 whatever the parameters are; torch gives both one type.
    param_dtype = jnp.dtype(config.param_dtype)
    buffers = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, param_dtype), _tree(buffers))
    return Model(graphdef, _tree(params), buffers)


def make_module(config: Config) -> Module:
    """The module itself, with parameters of zeros."""
    dtype, param_dtype = jnp.dtype(config.train.dtype), jnp.dtype(config.param_dtype)
    match config.model:
        case GPTConfig():
            return GPT(config.model, dtype=dtype, param_dtype=param_dtype, remat=config.train.remat)
        case LinearConfig():
            return LinearClassifier(config.model, dtype=dtype, param_dtype=param_dtype)
        case EmbeddingConfig():
            return EmbeddingModel(config.model, dtype=dtype, param_dtype=param_dtype)
        case MLPConfig():
            return MLPClassifier(config.model, dtype=dtype, param_dtype=param_dtype)


def forward(model: Any, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
    """The logits of one micro-batch, of a bound module. key: for dropout in train mode without a mask in the batch."""
    if "tokens" in batch:
        return model(batch["tokens"])
    if isinstance(model, MLPClassifier):
        return model(batch["inputs"], batch.get("dropout_mask"), key)
    return model(batch["inputs"])


def load_tree(shapes: Tree, arrays: Mapping[str, np.ndarray]) -> Tree:
    """NumPy arrays by name as a tree like `shapes`, in its dtypes. Raises KeyError for a name that is missing."""
    return unflatten({name: jnp.asarray(arrays[name], s.dtype) for name, s in flatten(shapes).items()})


def _tree(state: nnx.State) -> Tree:
    flat = {
        ".".join([*map(str, path[:-1]), TORCH_NAMES.get(str(path[-1]), str(path[-1]))]): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }
    return unflatten(flat)


def _state(tree: Tree, variable: Callable[[str, jax.Array], nnx.Variable]) -> nnx.State:
    flat: dict[Any, Any] = {}
    for name, leaf in flatten(tree).items():
        *parents, last = name.split(".")
        is_norm = parents[-1:] == ["norm"]
        last = FLAX_NAMES.get(last, last) if is_norm else last
        flat[(*(int(p) if p.isdigit() else p for p in parents), last)] = variable(name, leaf)
    return nnx.from_flat_state(flat)
