import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl.checksum import inspect_arrays, numpy_checksum


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int32", "uint32", "int8"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_the_checksum_is_the_same_in_jax_and_numpy(dtype, shape, x64):
    array = np.asarray(jnp.asarray(np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype))
    (found,), (finite,) = inspect_arrays([jnp.asarray(array)])
    assert found.dtype == jnp.uint32
    assert int(found) == numpy_checksum(array)
    assert bool(finite)


def test_the_checksum_sees_every_single_bit_and_the_order_of_words():
    array = np.random.default_rng(0).standard_normal(9).astype(np.float32)
    whole = numpy_checksum(array)
    for byte in range(array.nbytes):
        for bit in range(8):
            flipped = bytearray(array.tobytes())
            flipped[byte] ^= 1 << bit
            assert numpy_checksum(np.frombuffer(flipped, np.float32)) != whole, (byte, bit)
    assert numpy_checksum(array[::-1]) != whole
