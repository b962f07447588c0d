"""Shared by all tests: where and how precisely JAX computes, torch's threads, and a switch for float64 in JAX."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
import torch

# As the trainers set it: float32 products in full precision, on a GPU too.
jax.config.update("jax_default_matmul_precision", "highest")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture
def x64():
    """JAX with float64 switched on for one test; without it float64 is silently float32."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session", autouse=True)
def corpus_cache(tmp_path_factory):
    """Tokenized corpora go to a folder of this test run, not to the user's cache."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before
