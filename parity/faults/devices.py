"""Faults of several devices: what is summed or averaged over them, or is not."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jax_impl.models as models
from jax_impl import parallel, step
from jax_impl.optimizer import CLIP_EPS
from parity.faults.fault import Fault, swap

train_step, summed_gradients, make_model = step.train_step, step.summed_gradients, models.make_model
split_examples = parallel._split_examples


def each_device(change: Any) -> Any:
    """The training step in which each device does `change(sums, grads)` to its own before they are added."""

    def gradients(*args: Any) -> Any:
        sums, buffers, grads = summed_gradients(*args)
        sums, grads = change(sums, grads)
        return sums, buffers, grads

    def faulty(config: Any, model: Any, optimizer: Any, state: Any, batch: Any, axis_name: Any = None) -> Any:
        return train_step(config, model, optimizer, state, batch, axis_name, gradients)

    return swap(train_step, faulty)


def added(sums: Any, grads: Any) -> Any:
    return sums, jax.tree.map(lambda g: g * jax.lax.axis_size(parallel.AXIS), grads)


def first_alone(sums: Any, grads: Any) -> Any:
    here = jax.lax.axis_index(parallel.AXIS) == 0
    return sums, jax.tree.map(lambda g: jnp.where(here, g * jax.lax.axis_size(parallel.AXIS), 0), grads)


def clipped_first(sums: Any, grads: Any) -> Any:
    norm = optax.tree.norm(grads) / sums.targets
    return sums, jax.tree.map(lambda g: g * jnp.minimum(1, 0.1 / (norm + CLIP_EPS)), grads)


def averaged_alone(sums: Any, grads: Any) -> Any:
    """Each device divides by its own targets; the devices' means count the same."""
    targets = sums.targets
    mean = sums._replace(nats=sums.nats / targets, targets=jnp.int32(1))
    return mean, jax.tree.map(lambda g: g / targets, grads)


def same_examples(x: Any, n: int, axis: int) -> Any:
    parts = split_examples(x, n, axis)
    return parts[[0] * n] if axis == 1 else parts


FAULTS = (
    Fault(
        "sum for mean over devices",
        "linear",
        "gradients",
        "psum where pmean belongs: the gradient times the number of devices (jax issue 3970)",
        each_device(added),
        flags="--devices 2",
    ),
    Fault(
        "clip before the mean over devices",
        "linear",
        "gradients",
        "each device clips its own gradient (nanochat 061f83c)",
        each_device(clipped_first),
        flags="--devices 2",
    ),
    Fault(
        "mean of the devices' means",
        "embedding",
        "loss",
        "unequal masks on the devices, equal weights",
        each_device(averaged_alone),
        flags="--devices 2",
    ),
    Fault(
        "gradients not all-reduced",
        "embedding",
        "gradients",
        "each device would train on its own examples; here all use the first device's gradient",
        each_device(first_alone),
        flags="--devices 2",
    ),
    Fault(
        "same examples on every device",
        "linear",
        "loss",
        "the shard's number is ignored",
        swap(split_examples, same_examples),
        flags="--devices 2",
    ),
    Fault(
        "BatchNorm per device",
        "mlp",
        "loss",
        "statistics of each device's shard of the batch",
        swap(make_model, lambda config, axis_name=None, *args: make_model(config, None, *args)),
        flags="--devices 2",
    ),
)
