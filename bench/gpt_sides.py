"""One optimizer step of the GPT, the same work on every side: jax, torch (eager), compiled, upstream."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from twinstep.config import Config, CorpusConfig, GPTConfig, TrainConfig
from twinstep.init import initial_weights

Work = Callable[[], Any]


def config_of(spec: dict[str, Any]) -> Config:
    """spec: the fields of GPTConfig, and sequence_len and batch_size; all else as by default, in float32."""
    model = {name: value for name, value in spec.items() if name not in ("sequence_len", "batch_size")}
    return Config(
        model=GPTConfig(**model),
        data=CorpusConfig(sequence_len=spec["sequence_len"]),
        train=TrainConfig(batch_size=spec["batch_size"]),
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
    """The function that takes one step and waits for its loss. spec: `config_of`'s, and `upstream`, a checkout."""
    spec = dict(spec)
    upstream = spec.pop("upstream", None)
    config = config_of(spec)
    if side == "jax":
        return prepare_jax(config)
    if side == "upstream":
        from bench.upstream import prepare_upstream

        return prepare_upstream(config, batch_of(config), upstream)
    return prepare_torch(config, compiled=side == "torch.compile")


def prepare_jax(config: Config) -> Work:
    """As `jax_impl.train` does it on one device."""
    from jax_impl import cpu, parallel
    from jax_impl.models import make_model
    from jax_impl.optimizer import make_optimizer
    from jax_impl.tree import flatten

    cpu.keep_freed_memory(config)
    parallel.set_precision(config)
    model = make_model(config, None, parallel.attention())
    steps = parallel.make_steps(config, "jit", model, make_optimizer(config, model.params))
    shapes = {name: s.shape for name, s in flatten(model.params).items()}
    state, batch = steps.init_state(initial_weights(shapes, 0, "nonzero")), batch_of(config)

    def step() -> float:
        nonlocal state
        state, metrics = steps.train(state, steps.place_train_batch(batch))
        return float(metrics["loss"])

    step()
    return step


def prepare_torch(config: Config, *, compiled: bool) -> Work:
    """As `torch_ref.train` does it; compiled: the model and Muon's orthogonalization through torch.compile."""
    import torch

    from torch_ref import muon
    from torch_ref.models import load_weights, make_model, weight_shapes
    from torch_ref.optimizer import setup_optimizers
    from torch_ref.step import train_step

    model: Any = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0, "nonzero"))
    optimizers = setup_optimizers(config, model)
    if compiled:
        model = torch.compile(model, dynamic=False)
        muon.orthogonalize = torch.compile(muon.orthogonalize, dynamic=False)
    batch = {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch_of(config).items()}
    step = 0

    def take_step() -> float:
        nonlocal step
        metrics = train_step(config, model, optimizers, step, batch)
        step += 1
        return float(metrics["loss"])

    take_step()
    return take_step
