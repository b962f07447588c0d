"""The mesh of devices, and the PartitionSpecs that shard parameters, optimizer state, stacks and batches over it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, PartitionSpec


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """One mesh over all devices: a line, or on a TPU the axes of its torus.

    XLA runs a reduce-scatter along the rings of a torus; over a line of its 16 chips it falls back on all-reduces of
    whole gradients, at twice the bytes (seen in the compiled program for v5e:4x4).
    """
    devices = jax.devices() if devices is None else devices
    torus = torus_shape(devices)
    if len(torus) < 2:
        return Mesh(np.array(devices), ("data",))
    grid = mesh_utils.create_device_mesh(torus, devices)
    return Mesh(grid, tuple(f"data_{n}" for n in range(len(torus))))


def torus_shape(devices: Sequence[Any]) -> tuple[int, ...]:
    """The sides longer than 1 of the box that these TPU chips fill; () for other devices, or chips that fill no box."""
    if devices[0].platform != "tpu":
        return ()
    coords = np.array([device.coords for device in devices])
    sides = tuple(int(side) for side in np.ptp(coords, axis=0) + 1 if side > 1)
    return sides if np.prod(sides) == len(devices) else ()


def shard_dim(shape: Sequence[int], devices: int) -> int | None:
    """The first dimension that all devices can share evenly; None if there is none.

    A TPU stores the last dimension in rows of 128 numbers. Sharded along it, shards that are no multiple of that are
    padded, and XLA has no reduce-scatter there but an all-reduce (seen in the program for v5e:4x4).
    """
    return next((dim for dim, size in enumerate(shape) if size and size % devices == 0), None)


def array_spec(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How one parameter, or one array of optimizer state, is sharded; replicated if it cannot be."""
    dim = shard_dim(shape, mesh.size)
    return PartitionSpec() if dim is None else PartitionSpec(*[None] * dim, mesh.axis_names)


def batch_spec(mesh: Mesh, dim: int) -> PartitionSpec:
    """Examples, dimension `dim`, sharded over all devices."""
    return PartitionSpec(*[None] * dim, mesh.axis_names)
