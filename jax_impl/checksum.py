"""A checksum of every array of a checkpoint, computed on the device that holds the array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def inspect_arrays(arrays: Any) -> tuple[Any, Any]:
    """For each array of a tree its checksum, uint32, and whether all its numbers are finite.

    The checksum is the sum of the array's bits, each word weighted by its index, modulo 2^32: the weights are odd, so
    that any flipped bit changes the sum, and differ, so that swapped words do too. It is a reduction over the array in
    its own shape, so that a sharded array is not gathered, whichever dimension is sharded.
    """

    def checksum(x: jax.Array) -> jax.Array:
        bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
        index = jnp.zeros(words.shape, jnp.uint32)
        for dim, size in enumerate(words.shape):
            index = index * size + jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)

    return jax.tree.map(checksum, arrays), jax.tree.map(lambda x: jnp.isfinite(x).all(), arrays)


def numpy_checksum(array: np.ndarray) -> int:
    """The checksum of `inspect_arrays`."""
    bits = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(array).ravel().view(bits).astype(np.uint32)
    index = np.arange(words.size, dtype=np.uint32)
    return int(np.sum(words * (2 * index + 1), dtype=np.uint32))
