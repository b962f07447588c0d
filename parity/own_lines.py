"""Which line of one of our own training steps is wrong: both frameworks take it once more, recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from jax_impl import step
from jax_impl.tree import flatten
from parity.dropout_masks import without_masks
from parity.jax_side import JaxSide
from parity.lines.answer import in_words
from parity.lines.find import find
from parity.lines.graph import Graph
from parity.lines.line import Lines
from parity.lines.record_jax import record_jax
from parity.lines.record_torch import record_torch
from parity.probes import kept_gradients, probing_clip
from parity.reference import Watched
from parity.result import Divergence, TensorResult
from parity.torch_side import TorchSide
from torch_ref import input
from torch_ref.step import train_step
from twinstep.config import Config

GRADIENT, CLIPPED, NEW = "gradient of ", "clipped gradient of ", "new "


def own_lines(
    judged: tuple[Any, Sequence[TensorResult], Divergence | None],
    config: Config,
    watched: Mapping[int, Watched],
    port: JaxSide,
) -> Lines | None:
    """The first wrong line of each side, where what differs is computed within a step; None elsewhere.

    judged: stages, tensors and the first divergence, which is of the run that `watched` is of.
    """
    _, tensors, first = judged
    results = [] if first is None else wrong_results(first, tensors, list(watched[0].before.weights))
    if first is None or not results or first.step not in watched:
        return None
    at = watched[first.step]
    sides = torch_graph(config, at), jax_graph(config, at, port)
    found = find(*sides, [(name, name) for name in results], backward=first.stage == "gradients")
    return None if found is None else in_words(found)


def wrong_results(first: Divergence, tensors: Sequence[TensorResult], names: Sequence[str]) -> list[str]:
    """What differs, by the names of the results of both graphs."""
    wrong = [t.tensor for t in tensors if t.stage == first.stage and t.init == first.init and "diverges" in t.status]
    known = [name for name in names if name in {tensor.split("/")[-1] for tensor in wrong}]
    if first.stage in ("activations", "loss"):
        return ["loss"]
    kind = {"gradients": GRADIENT, "clip": CLIPPED, "update": NEW, "parameters": NEW}.get(first.stage)
    return [] if kind is None else [f"{kind}{name}" for name in known or names]


def torch_graph(config: Config, at: Watched) -> Graph:
    """Every operation of a step of torch_ref."""
    side = TorchSide(config)
    side.load(at.before)
    side.model.train()
    batch = side.place(input.to_tensors(at.batch))
    found: dict[str, torch.Tensor] = {}

    def gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                found[f"{CLIPPED}{side.names[p]}"] = p.grad.clone()

    def accumulated(p: torch.Tensor) -> None:
        found[f"{GRADIENT}{side.names[p]}"] = p.grad.clone()  # type: ignore[union-attr]

    handles = [p.register_post_accumulate_grad_hook(accumulated) for p in side.names]
    handles += [optimizer.register_step_pre_hook(gradients) for optimizer in side.optimizers]

    def run() -> dict[str, torch.Tensor]:
        metrics = train_step(config, side.model, side.optimizers, at.before.step, batch)
        return {**found, "loss": metrics["loss"], **{f"{NEW}{name}": p for p, name in side.names.items()}}

    try:
        return record_torch(run, dict(side.model.state_dict(keep_vars=True)), batch)
    finally:
        for handle in handles:
            handle.remove()


def jax_graph(config: Config, at: Watched, port: JaxSide) -> Graph:
    """Every operation of a step of jax_impl on one device."""
    state = port.load(at.before)
    batch = {name: jnp.asarray(x) for name, x in without_masks(at.batch, config).items()}

    def run(leaves: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        params = jax.tree.unflatten(jax.tree.structure(state.params), [leaves[name] for name in flatten(state.params)])
        with probing_clip():
            after, metrics = step.train_step(
                config, port.model, port.optimizer, state._replace(params=params), dict(batch)
            )
        before, clipped = kept_gradients(after.opt_state)
        found = {f"{GRADIENT}{name}": x for name, x in before.items()}
        found |= {f"{CLIPPED}{name}": x for name, x in clipped.items()}
        found |= {f"{NEW}{name}": x for name, x in flatten(after.params).items()}
        return {**found, "loss": metrics["loss"]}

    jax.clear_caches()  # a function that was traced before has no lines of its own
    return record_jax(run, flatten(state.params), batch)
