"""Matrices of one shape in one stack, and the stack sharded among devices: how Muon runs elsewhere than on one CPU.

Shapes: N matrices of one shape stacked, R rows, Q columns.
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

    mesh: each of its devices computes a share of every stack's matrices; without one, each device all of them.
    """
    leaves, treedef = jax.tree.flatten(tree)
    done: list[Any] = [None] * len(leaves)
    for shape in sorted({leaf.shape for leaf in leaves}):
        at = [i for i, leaf in enumerate(leaves) if leaf.shape == shape]
        x_NRQ = jnp.stack([leaves[i] for i in at])
        y_NRQ = function(x_NRQ) if mesh is None else shard_stack(function, x_NRQ, mesh)
        for i, y_RQ in zip(at, y_NRQ, strict=True):
            done[i] = y_RQ
    return jax.tree.unflatten(treedef, done)


def shard_stack(function: Function, x_NRQ: jax.Array, mesh: Mesh) -> jax.Array:
    """`function(x)`, each device with a share of the N matrices.

    The shards of each matrix go to the device that works on it and back: two all-to-alls of the stack's size over the
    number of devices, where an all-gather would bring every matrix to every device. N is padded with zeros to a
    multiple of the devices; nanochat's DistMuon shares the matrices out likewise.
    """
    by_matrix = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    by_dim = NamedSharding(mesh, PartitionSpec(None, *array_spec(x_NRQ.shape[1:], mesh)))
    count = x_NRQ.shape[0]
    x_NRQ = jnp.pad(x_NRQ, ((0, -count % mesh.size), (0, 0), (0, 0)))
    x_NRQ = jax.lax.with_sharding_constraint(x_NRQ, by_matrix)
    y_NRQ = jax.lax.with_sharding_constraint(function(x_NRQ), by_matrix)
    return jax.lax.with_sharding_constraint(y_NRQ, by_dim)[:count]
