"""Training steps written otherwise that compute the same: the check must say nothing."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jax_impl import optimizer, parallel, step
from parity.faults.fault import Fault, swap
from parity.faults.rewritten_optimizers import transposed

train_step, summed_gradients, micro_step, summed_loss = (
    step.train_step,
    step.summed_gradients,
    step.micro_step,
    step.summed_loss,
)
jit_steps = parallel.jit_steps


def stepping(gradients: Any) -> Any:
    """The training step with another `summed_gradients`."""

    def faulty(config: Any, model: Any, optimizer: Any, state: Any, batch: Any, axis_name: Any = None) -> Any:
        return train_step(config, model, optimizer, state, batch, axis_name, gradients)

    return swap(train_step, faulty)


def last_micro_step_first(model: Any, params: Any, buffers: Any, batch: Any, key: Any) -> Any:
    return summed_gradients(model, params, buffers, jax.tree.map(lambda x: x[::-1], batch), key)


def unrolled(model: Any, params: Any, buffers: Any, batch: Any, key: Any) -> Any:
    """A loop in Python; the gradients are stacked and summed at the end."""
    found = []
    for number in range(batch["targets"].shape[0]):
        micro_batch = jax.tree.map(lambda x, n=number: x[n], batch)
        sums, buffers, grads = micro_step(model, params, buffers, micro_batch, jax.random.fold_in(key, number))
        found.append((sums, grads))
    sums, grads = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *found)
    return sums, buffers, grads


def jitted_within(model: Any, *args: Any) -> Any:
    return jax.jit(partial(micro_step, model))(*args)


def transposed_kernels(model: Any, params: Any, buffers: Any, micro_batch: Any, key: Any) -> Any:
    """Differentiated with respect to weights of (in, out), as Flax stores them."""

    def loss(kernels: Any) -> Any:
        return summed_loss(transposed(kernels), model, buffers, micro_batch, key)

    grads, (sums, new_buffers) = jax.grad(loss, has_aux=True)(transposed(params))
    return sums, new_buffers, transposed(grads)


def recomputed(policy: Any) -> Any:
    def faulty(params: Any, model: Any, *args: Any) -> Any:
        return jax.checkpoint(lambda params, *rest: summed_loss(params, model, *rest), policy=policy)(params, *args)

    return swap(summed_loss, faulty)


def not_donated(config: Any, model: Any, optimizer: Any) -> Any:
    made = jit_steps(config, model, optimizer)
    step_fn = jax.jit(partial(train_step, config, model, optimizer))
    return made._replace(train=lambda state, batch, signal=0: step_fn(state, batch), compiled=step_fn)


def norm_of_one_vector(grads: Any, max_norm: float) -> Any:
    """The norm of all gradients in one vector, and a branch instead of a minimum."""
    norm = jnp.linalg.norm(jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)]))
    over = norm + optimizer.CLIP_EPS
    return jax.tree.map(lambda g: jnp.where(over > max_norm, g * max_norm / over, g), grads), norm


FAULTS = (
    Fault(
        "micro-steps in reverse order",
        "embedding",
        None,
        "the last micro-batch's gradient first",
        stepping(last_micro_step_first),
        "a sum in another order",
    ),
    Fault(
        "micro-steps unrolled",
        "mlp",
        None,
        "a loop in Python for a scan",
        stepping(unrolled),
        "the same operations",
    ),
    Fault(
        "jit within jit",
        "embedding",
        None,
        "each micro-step under a jit of its own",
        swap(micro_step, jitted_within),
        "a jit within a jit is inlined",
    ),
    Fault(
        "kernels transposed in the step",
        "embedding",
        None,
        "the loss is differentiated with respect to weights of (in, out)",
        swap(micro_step, transposed_kernels),
        "the gradient is transposed back before the optimizer",
    ),
    Fault(
        "checkpoint policy: products saved",
        "gpt",
        None,
        "`jax.checkpoint` of the whole loss, which keeps the results of matrix products",
        recomputed(jax.checkpoint_policies.dots_saveable),
        "what is not kept is computed again, from the same numbers",
    ),
    Fault(
        "checkpoint policy: nothing saved",
        "gpt",
        None,
        "`jax.checkpoint` of the whole loss, which keeps nothing",
        recomputed(jax.checkpoint_policies.nothing_saveable),
        "all is computed again, from the same numbers",
    ),
    Fault(
        "state not donated",
        "linear",
        None,
        "the old state stays in memory",
        swap(jit_steps, not_donated),
        "donation says where results are written, not what they are",
    ),
    Fault(
        "norm of one vector",
        "mlp",
        None,
        "all gradients in one vector for the clip's norm; a branch for its minimum",
        swap(optimizer.clip_by_global_norm, norm_of_one_vector),
        "a sum of squares in another order",
    ),
)
