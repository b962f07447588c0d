"""JAX lowers cuDNN's attention only where it finds a card and cuDNN. XLA's compiler needs neither."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from jax._src.cudnn import fused_attention_stablehlo as checks

from jax_impl.models import cudnn


@contextmanager
def assumed_cudnn() -> Iterator[None]:
    """Inside, `cudnn_attention` is lowered as on an A100 with cuDNN 9.10, the least of what we compile for.

    For heads of up to 128 channels JAX lowers the same for all of these cards.
    """
    answers = mock.patch.multiple(
        checks,
        check_cudnn_version=lambda: 91000,
        check_compute_capability=lambda least: float(least) <= 8.0,
        is_cuda_compute_capability_equal=lambda exact: float(exact) == 8.0,
    )
    with answers, mock.patch.object(cudnn, "available", return_value=True):
        yield
