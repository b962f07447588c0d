"""JAX lowers cuDNN's attention only where it finds cuDNN. XLA's compiler does not need it."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from jax._src.cudnn import fused_attention_stablehlo

from jax_impl.models import cudnn


@contextmanager
def assumed_cudnn() -> Iterator[None]:
    """Inside, `cudnn_attention` is lowered as where cuDNN 9.10 is installed."""
    installed = mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=91000)
    with installed, mock.patch.object(cudnn, "available", return_value=True):
        yield
