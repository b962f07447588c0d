"""The switches for a CPU: known to this XLA, ignored by another, and kept memory that takes no page faults."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jax_impl import cpu
from tests.helpers.trust import train
from twinstep.cli import parse_train_config
from twinstep.config import Config, GPTConfig

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from jax_impl import cpu
from twinstep.config import Config, LinearConfig, TabularConfig
if sys.argv[1] == "keep":
    assert cpu.keep_freed_memory(Config(model=LinearConfig(), data=TabularConfig()))
step = jax.jit(lambda x: (jnp.stack([x * n for n in range(8)]) @ x[:, :1]).sum())  # the stack is 67 MB
x = jnp.ones((1448, 1448))
faults = []
for _ in range(20):  # what is kept finds its place within a few steps
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.fixture
def fresh_options():
    cpu.compiler_options.cache_clear()
    yield
    cpu.compiler_options.cache_clear()


def test_this_xla_knows_the_options_and_keeps_to_eigen(fresh_options):
    product = jax.jit(jnp.matmul, compiler_options=cpu.compiler_options())
    shape = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    assert "ynn_fusion" in jax.jit(jnp.matmul).lower(shape, shape).compile().as_text()
    assert "ynn_fusion" not in product.lower(shape, shape).compile().as_text()


def test_an_option_that_xla_does_not_know_is_left_out(fresh_options, monkeypatch):
    monkeypatch.setattr(cpu, "OPTIONS", {"xla_cpu_no_such_option": ""})
    assert cpu.compiler_options() is None


def test_a_model_with_large_logits_gives_its_memory_back():
    assert not cpu.keep_freed_memory(Config(model=GPTConfig(vocab_size=2**17)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_flag_refuses_both_settings(monkeypatch):
    monkeypatch.setattr(cpu.jax.config, "update", lambda name, value: pytest.fail(f"{name} was set"))
    refused = parse_train_config("train", ["linear", "--no-keep-freed-memory", "--out-dir", "run"], "jax")
    assert not cpu.keep_freed_memory(refused)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_run_says_that_memory_is_kept_unless_it_is_refused(tmp_path, capsys):
    argv = ["linear", "--steps", "1", "--eval-batches", "1", "--batch-size", "8", "--out-dir"]
    assert train("jax", [*argv, str(tmp_path / "kept")]) == 0
    assert f"memory: {cpu.KEPT}\n" in capsys.readouterr().out
    assert train("jax", [*argv, str(tmp_path / "refused"), "--no-keep-freed-memory"]) == 0
    assert "memory:" not in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_step_takes_no_page_faults_for_memory_that_was_kept():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, check=True).stdout)
        for mode in ("give back", "keep")
    }
    assert faults["give back"] > 1000
    assert faults["keep"] < faults["give back"] / 10
