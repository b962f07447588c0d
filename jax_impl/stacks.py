"""Muon's matrices stacked by shape, and the stacks sharded over devices: how Muon runs everywhere but on one CPU.

Shapes: Z matrices of one shape in a stack, R rows, Q columns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_impl.mesh import array_spec

Function = Callable[[jax.Array], jax.Array]  # of a stack, matrix by matrix


def map_stacks(function: Function, tree: Any, mesh: Mesh | None = None) -> Any:
    """`function` of every matrix of a tree, called once for all matrices of one shape.

    mesh: each of its devices computes an equal share of every stack; without a mesh, every device computes all of it.
    """
    leaves, treedef = jax.tree.flatten(tree)
    done: list[Any] = [None] * len(leaves)
    for shape in sorted({leaf.shape for leaf in leaves}):
        at = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
        x_ZRQ = jnp.stack([leaves[i] for i in at])
        y_ZRQ = function(x_ZRQ) if mesh is None else shard_stack(function, x_ZRQ, mesh)
        for i, y_RQ in zip(at, y_ZRQ, strict=True):
            done[i] = y_RQ
    return jax.tree.unflatten(treedef, done)


def shard_stack(function: Function, x_ZRQ: jax.Array, mesh: Mesh) -> jax.Array:
    """`function(x)`, the Z matrices sharded over the devices.

    The shards of each matrix go to the device that works on it and back: two all-to-alls of the stack's size over the
    number of devices, where an all-gather would send every matrix to every device. Z is padded with zeros to a
    multiple of the devices; nanochat's DistMuon distributes its matrices in the same way.
    """
    by_matrix = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    by_dim = NamedSharding(mesh, PartitionSpec(None, *array_spec(x_ZRQ.shape[1:], mesh)))
    count = x_ZRQ.shape[0]
    x_ZRQ = jnp.pad(x_ZRQ, ((0, -count % mesh.size), (0, 0), (0, 0)))
    x_ZRQ = jax.lax.with_sharding_constraint(x_ZRQ, by_matrix)
    y_ZRQ = jax.lax.with_sharding_constraint(function(x_ZRQ), by_matrix)
    return jax.lax.with_sharding_constraint(y_ZRQ, by_dim)[:count]
