"""Shared by all tests: where and how precisely JAX computes, torch's threads, and a switch for float64 in JAX.

Where torch is not installed, what needs it is left out, and the last lines say how much.
"""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

# The same tiny programs are compiled again and again, by functions that are built anew and by processes that tests
# start: a folder keeps them until the end. Each worker has its own, since JAX writes its cache without locks.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# XLA optimizes a program as always, LLVM its machine code hardly: that takes half of a compilation, and a tiny program
# runs for no longer than a moment. With 0 in the environment the machine code is the trainers'.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

from tests.helpers.frameworks import FRAMEWORKS, files_that_need_torch, without_cases_of_torch

# As the trainers set it: float32 products in full precision, on a GPU too.
jax.config.update("jax_default_matmul_precision", "highest")

if "torch" in FRAMEWORKS and "PYTEST_XDIST_WORKER" in os.environ:
    import torch

    torch.set_num_threads(1)

collect_ignore = [] if "torch" in FRAMEWORKS else [str(path) for path in files_that_need_torch()]


def pytest_collection_modifyitems(config, items):
    if "torch" not in FRAMEWORKS:
        items[:], left_out = without_cases_of_torch(items)
        config.hook.pytest_deselected(items=left_out)


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        files = f"{len(collect_ignore)} test files, and in the others the cases of torch"
        terminalreporter.write_line(f"torch is not installed: left out {files}")


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
