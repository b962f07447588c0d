"""One optimizer step of the GPT, the same work on every side: jax, torch (eager), compiled, upstream."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from twinstep.config import Config, CorpusConfig, DeviceConfig, GPTConfig, TrainConfig
from twinstep.init import initial_weights

IN_TRAIN = ("batch_size", "dtype", "matmul_precision")


class Work(NamedTuple):
    """One side, ready: its first step has been taken."""

    step: Callable[[], Any]  # takes one step; its loss may still be under way
    peak_bytes: Callable[[], int] = lambda: 0  # of the GPU, since the start
    release: Callable[[], None] = lambda: None  # gives back the GPU's memory that is kept for the next step


def config_of(spec: dict[str, Any]) -> Config:
    """spec: the fields of GPTConfig, sequence_len, fields of TrainConfig, and compilation_cache (off by default).

    All else is as by default.
    """
    elsewhere = ("sequence_len", "compilation_cache", *IN_TRAIN)
    model = {name: value for name, value in spec.items() if name not in elsewhere}
    return Config(
        model=GPTConfig(**model),
        data=CorpusConfig(sequence_len=spec["sequence_len"]),
        train=TrainConfig(**{name: spec[name] for name in IN_TRAIN if name in spec}),
        devices=DeviceConfig(compilation_cache=spec.get("compilation_cache", False)),
    )


def batch_of(config: Config) -> dict[str, np.ndarray]:
    """One micro-batch of random tokens, (1, B, T) int32."""
    assert isinstance(config.model, GPTConfig)
    assert isinstance(config.data, CorpusConfig)
    shape = (1, config.batch_size, config.data.sequence_len + 1)
    ids = np.random.default_rng(0).integers(0, config.model.vocab_size or 0, shape, dtype=np.int32)
    return {"tokens": ids[..., :-1], "targets": ids[..., 1:]}


def sides(upstream: str | None, *, compiled: bool) -> list[str]:
    """The sides that are asked for and that this machine can run; torch.compile needs a C++ compiler."""
    names = {"jax": True, "torch": True, "torch.compile": compiled and shutil.which("g++"), "upstream": upstream}
    return [name for name, wanted in names.items() if wanted]


def prepare(side: str, spec: dict[str, Any]) -> Work:
    """spec: `config_of`'s, and `upstream`, a checkout."""
    spec = dict(spec)
    upstream = spec.pop("upstream", None)
    config = config_of(spec)
    if side == "jax":
        work = prepare_jax(config)
    elif side == "upstream":
        from bench.upstream import prepare_upstream

        work = prepare_upstream(config, batch_of(config), upstream)
    else:
        work = prepare_torch(replace(config, devices=DeviceConfig(compile=side == "torch.compile")))
    float(work.step())
    work.release()
    return work


def prepare_jax(config: Config) -> Work:
    """As `jax_impl.train` does it on one device."""
    import jax

    from jax_impl import cpu, parallel
    from jax_impl.compilation_cache import keep_compiled_programs
    from jax_impl.models import make_model
    from jax_impl.optimizer import make_optimizer
    from jax_impl.tree import flatten

    keep_compiled_programs(config)
    cpu.keep_freed_memory(config)
    parallel.set_precision(config)
    mode = parallel.choose_mode(config)
    model = make_model(config, parallel.axis_name(mode), parallel.attention(), parallel.scans_blocks(mode))
    steps = parallel.make_steps(config, mode, model, make_optimizer(config, model.params, *parallel.muon_stacks(mode)))
    shapes = {name: s.shape for name, s in flatten(model.params).items()}
    state, batch = steps.init_state(initial_weights(shapes, 0, "nonzero")), batch_of(config)

    def step() -> Any:
        nonlocal state
        state, metrics = steps.train(state, steps.place_train_batch(batch))
        return metrics["loss"]

    return Work(step, peak_bytes=lambda: (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))


def prepare_torch(config: Config) -> Work:
    """As `torch_ref.train` does it in one process."""
    import torch

    from torch_ref import parallel
    from torch_ref.models import load_weights, make_model, weight_shapes
    from torch_ref.optimizer import setup_optimizers
    from torch_ref.processes import device
    from torch_ref.step import train_step

    parallel.set_precision(config)
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    model.to(device())
    optimizers = setup_optimizers(config, model)
    wrapped = parallel.wrap(config, model, "jit")
    batch = {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch_of(config).items()}
    steps = 0

    def step() -> Any:
        nonlocal steps
        placed = {name: x.to(device(), non_blocking=True) for name, x in batch.items()}
        metrics = train_step(config, wrapped, optimizers, steps, placed)
        steps += 1
        return metrics["loss"]

    return on_torch(step)


def on_torch(step: Callable[[], Any]) -> Work:
    """A side that runs on torch."""
    import torch

    if not torch.cuda.is_available():
        return Work(step)
    return Work(step, torch.cuda.max_memory_allocated, torch.cuda.empty_cache)
