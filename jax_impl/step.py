"""The train step and the eval step: forward, backward, clip, update, as pure functions on plain trees.

jit, pmap, sharding and donation are applied outside, in `parallel.py`. Shapes: A micro-steps, B batch, the rest as
in the models.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jax_impl.head_loss import batch_loss
from jax_impl.losses import Sums, loss_sums
from jax_impl.models import Model, forward, load_tree
from jax_impl.optimizer import clip_by_global_norm, group_norms, logged_learning_rate
from jax_impl.tree import Tree, flatten
from twinstep.config import Config

Batch = dict[str, jax.Array]
Axes = str | tuple[str, ...] | None  # names of mapped axes


class State(NamedTuple):
    """All that a training step changes, and all that a checkpoint holds."""

    params: Tree
    buffers: Tree  # BatchNorm's running statistics: neither differentiated nor decayed
    opt_state: Any
    step: jax.Array  # optimizer steps taken, int32
    key: jax.Array  # raw random key, uint32 (2,); folded with the step, never replaced


def init_state(model: Model, optimizer: optax.GradientTransformation, weights: dict[str, Any], seed: int) -> State:
    """A state at step 0 from arrays by name, parameters and buffers alike."""
    params = load_tree(model.params, weights)
    buffers = load_tree(model.buffers, weights)
    key = jax.random.key_data(jax.random.key(seed))
    return State(params, buffers, optimizer.init(params), jnp.zeros([], jnp.int32), key)


def summed_loss(
    params: Tree, model: Model, buffers: Tree, micro_batch: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[Sums, Tree]]:
    """Summed (not mean) loss of one micro-batch in nats; as auxiliary output, sums and new buffers."""
    module = model.bind(params, buffers, train=True)
    sums = batch_loss(module, micro_batch, key)
    return sums.nats, (sums, model.buffers_of(module))


def micro_step(
    model: Model, params: Tree, buffers: Tree, micro_batch: Batch, key: jax.Array
) -> tuple[Sums, Tree, Tree]:
    """Forward and backward: sums, new buffers and the gradient of the summed loss of one micro-batch."""
    grads, (sums, new_buffers) = jax.grad(summed_loss, has_aux=True)(params, model, buffers, micro_batch, key)
    return sums, new_buffers, grads


def summed_gradients(
    model: Model, params: Tree, buffers: Tree, batch: Batch, key: jax.Array
) -> tuple[Sums, Tree, Tree]:
    """Sums, new buffers and the gradient of the summed loss of a batch of A micro-batches, each array (A, B, ...)."""

    def accumulate(carry: tuple[Sums, Tree, Tree], micro: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        sums, buffers, grads = carry
        number, micro_batch = micro
        more, buffers, more_grads = micro_step(model, params, buffers, micro_batch, jax.random.fold_in(key, number))
        return (jax.tree.map(jnp.add, sums, more), buffers, jax.tree.map(jnp.add, grads, more_grads)), None

    micro_steps = batch["targets"].shape[0]
    first = jax.tree.map(lambda x: x[0], batch)
    if micro_steps == 1:
        return micro_step(model, params, buffers, first, jax.random.fold_in(key, 0))
    shapes = jax.eval_shape(lambda: micro_step(model, params, buffers, first, key))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
    carry = (zeros[0], buffers, zeros[1])
    (sums, buffers, grads), _ = jax.lax.scan(accumulate, carry, (jnp.arange(micro_steps), batch))
    return sums, buffers, grads


def train_step(
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    state: State,
    batch: Batch,
    axis_name: Axes = None,
    gradients: Callable[..., tuple[Sums, Tree, Tree]] = summed_gradients,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimizer step on a batch of A micro-batches, each array (A, B, ...).

    The loss is the mean over all targets of the step that count: sums are added over micro-steps and over the
    devices of `axis_name`, and divided once. gradients: `summed_gradients`, or the same for sharded parameters.
    Metrics: loss (nats), grad_norm (before clipping), learning_rate (the matrices'), leaf_norms (one per parameter,
    to name a tensor that is not finite), and those of `group_norms`.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    sums, buffers, grads = gradients(model, state.params, state.buffers, batch, key)
    if axis_name is not None:
        sums, grads = jax.lax.psum((sums, grads), axis_name)
    targets = jnp.maximum(sums.targets, 1)
    loss = sums.nats / targets
    grads = jax.tree.map(lambda g: g / targets.astype(g.dtype), grads)

    # Not raveled, since that would gather a gradient that is sharded.
    leaf_norms = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(g))) for g in flatten(grads).values()])
    with jax.named_scope("optimizer"):
        grads, grad_norm = clip_by_global_norm(grads, config.optimizer.clip_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    learning_rate = logged_learning_rate(config, state.opt_state)
    metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "leaf_norms": leaf_norms}
    metrics |= group_norms(config, state.params, updates)
    return State(params, buffers, opt_state, state.step + 1, state.key), metrics


def scan_train_steps(
    step_fn: Callable[[State, Batch], tuple[State, dict[str, jax.Array]]], state: State, batches: Batch
) -> tuple[State, dict[str, jax.Array]]:
    """Several optimizer steps in one dispatch, for models so small that calling the step takes longer than the step.

    step_fn: `train_step` with all but its last two arguments given. batches: stacked, each array (steps, A, B, ...).
    Returns the last state, and the metrics of every step with a leading axis of steps.
    """
    return jax.lax.scan(step_fn, state, batches)


def eval_step(model: Model, params: Tree, buffers: Tree, batch: Batch, axis_name: Axes = None) -> Sums:
    """The sums of one batch (B, ...) in eval mode."""
    module = model.bind(params, buffers, train=False)
    sums = loss_sums(forward(module, batch), batch["targets"], batch.get("target_bytes"))
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)
