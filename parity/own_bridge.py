"""The bridge of our own models, whose names and orientation are torch's: the identity, strict both ways."""

from collections.abc import Mapping

import numpy as np

from jax_impl.models import Model
from jax_impl.tree import Tree, flatten, unflatten
from parity.rules import Rule, map_names
from parity.weights import carry_to_jax, check_leaf

# torch alone counts batches in BatchNorm, and reads the count only where momentum is None, which ours never is.
OWN_RULES = (
    Rule(r".*\.num_batches_tracked", None),
    Rule(r"(?!.*\.num_batches_tracked$).+", r"\g<0>"),
)


def torch_to_jax(model: Model, arrays: Mapping[str, np.ndarray]) -> tuple[Tree, Tree]:
    """A state_dict of one of our torch models, as NumPy arrays -> params and buffers of the JAX model (NumPy leaves).

    Raises UserError naming the key for anything missing, left over, of another shape or of another dtype.
    """
    like = {**flatten(model.params), **flatten(model.buffers)}
    leaves = carry_to_jax(map_names(OWN_RULES, arrays, like), arrays, like)
    params = unflatten({name: leaves[name] for name in flatten(model.params)})
    buffers = unflatten({name: leaves[name] for name in flatten(model.buffers)})
    return params, buffers


def jax_to_torch(model: Model, params: Tree, buffers: Tree) -> dict[str, np.ndarray]:
    """The inverse of `torch_to_jax`: NumPy arrays under torch's names, without torch's own count of batches.

    Raises UserError naming the key for anything missing, left over, of another shape or of another dtype.
    """
    like = {**flatten(model.params), **flatten(model.buffers)}
    leaves = {**flatten(params), **flatten(buffers)}
    map_names(OWN_RULES, leaves, like)
    for name, leaf in leaves.items():
        check_leaf(name, leaf.shape, leaf.dtype, like[name])
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}
