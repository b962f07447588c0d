"""Settings of XLA and of glibc's allocator that make training fast on a CPU. They change nothing but rounding."""

import ctypes
import functools
import sys

import jax

from jax_impl.head_loss import large_logits
from twinstep.config import Config

# XLA's CPU backend hands matrix products and reductions to a library of its own, YNN, which is younger than the Eigen
# kernels beside it: on an AVX-512 core these reached 195 GFLOP/s in the products of a GPT's step, YNN 170, and YNN's
# row sums took five times as long. An empty list of fusion types keeps to Eigen. The code that XLA generates itself
# uses 256-bit vectors by default; 512-bit ones save an eighth of the time spent in it.
OPTIONS: dict[str, str | int] = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": 512}

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

# What a run says in its first lines when `keep_freed_memory` is in force.
KEPT = "glibc keeps freed memory (up to 2 GB), one process dispatches synchronously; --no-keep-freed-memory refuses"


@functools.cache
def compiler_options() -> dict[str, str | int] | None:
    """For `jax.jit(..., compiler_options=...)`: None on other devices, or where this XLA doesn't know the options."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:  # an experimental option, gone from another release
        return None
    return OPTIONS


def keep_freed_memory(config: Config) -> bool:
    """Set glibc's malloc to keep freed memory; call before the first computation. True if it was set.

    XLA allocates the temporary memory of a step anew for each step, and by default glibc returns such large blocks to
    the system: the next step takes a page fault for every 4 KB, 50,000 of them and a tenth of the time in a step of
    the benchmarks' first GPT. Only malloc's main arena keeps large blocks, and only the main thread is sure to use
    that arena. So asynchronous dispatch is switched off: steps then run in the thread that calls them. (A single
    arena for all threads instead would make the threads of matrix products, which allocate all the time, wait for
    each other.) JAX reads that switch when it creates the CPU client; in a run of several processes that has happened
    already, and dispatch stays asynchronous.

    The price: up to 2 GB stay with the process. So not for a model with large logits, where memory is what runs out:
    with a vocabulary of 32,768 the process took a tenth to a quarter more. Nor where there is no glibc, nor under
    --no-keep-freed-memory.
    """
    if not config.devices.keep_freed_memory or large_logits(config) or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):  # an int
        return False
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True
