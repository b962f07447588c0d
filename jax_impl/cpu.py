"""What XLA and the C library need to be told to be fast on a CPU. It changes nothing but rounding."""

import ctypes
import functools
import sys

import jax

from jax_impl.head_loss import large_logits
from twinstep.config import Config

# XLA's CPU backend hands matrix products and reductions to a library of its own, YNN, which is younger than the Eigen
# kernels beside it: on an AVX-512 core these reached 195 GFLOP/s in the products of a GPT's step, YNN 170, and YNN's
# row sums took five times as long. An empty list of fusion types keeps to Eigen. Code that XLA writes itself takes
# vectors of half an AVX-512 register unless it is told; whole ones save an eighth of the time spent in it.
OPTIONS: dict[str, str | int] = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": 512}

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@functools.cache
def compiler_options() -> dict[str, str | int] | None:
    """For `jax.jit(..., compiler_options=...)`: None elsewhere than on a CPU, or where this XLA doesn't know them."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option, gone from another release
        return None
    return OPTIONS


def keep_freed_memory(config: Config) -> bool:
    """Tell glibc's malloc to keep what is freed, before the first computation; False where it isn't told.

    XLA allocates a step's temporary memory anew for each step, and by default glibc gives such large pieces back to
    the system: the next step takes a page fault for every 4 KB, 50,000 of them and a tenth of the time in a step of
    the benchmarks' first GPT. Only the main arena keeps large pieces, and only the main thread is sure to allocate
    there: so steps are dispatched by the thread that calls them, which waits. (One arena for all threads instead
    would have the products' threads, which allocate all the time, wait for each other.)
    JAX reads that switch when it makes the CPU client, which several processes have done by then.

    The price: up to 2 GB stay with the process. So not for a model with large logits, where memory is what runs out:
    with a vocabulary of 32,768 the process took a tenth to a quarter more. Nor where there is no glibc.
    """
    if large_logits(config) or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):  # an int
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True
