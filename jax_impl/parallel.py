"""Where the pure step runs: one device, or data parallel over several. The only file that knows of devices.

Shapes: N devices of this process, A micro-steps, B batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jax_impl.losses import Sums
from jax_impl.models import Model, make_model
from jax_impl.step import Batch, State, eval_step, train_step
from recipe.config import Config
from recipe.errors import UserError

AXIS = "data"


class Steps(NamedTuple):
    """The steps, compiled on first use. `train` donates its state: the old one is gone after the call."""

    mode: str  # "jit" or "pmap"
    train: Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[[State, Batch], Sums]
    place_state: Callable[[State], State]
    place_train_batch: Callable[[dict[str, np.ndarray]], Batch]
    place_eval_batch: Callable[[dict[str, np.ndarray]], Batch]


def set_precision(config: Config) -> None:
    """Process-wide switches of the arithmetic; call before any array is made.

    float64 is silently float32 unless jax_enable_x64 is on; float32 products may be TF32 or bfloat16 passes on
    accelerators unless the precision says otherwise.
    """
    jax.config.update("jax_enable_x64", config.train.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", config.train.matmul_precision)


def choose_mode(config: Config) -> str:
    """What `--parallel auto` means here. Raises UserError for a mode that these devices cannot run."""
    devices = jax.device_count()
    mode = config.devices.parallel
    if mode == "auto":
        mode = "jit" if devices == 1 and jax.default_backend() == "cpu" else "pmap"
    if mode == "jit" and devices > 1:
        raise UserError(f"--parallel jit uses one device, but there are {devices}; pass --parallel pmap")
    micro_batch = config.batch_size // config.train.accumulation
    if mode != "jit" and micro_batch % devices:
        raise UserError(
            f"--batch-size {config.batch_size} / --accumulation {config.train.accumulation} = {micro_batch} "
            f"is not divisible by {devices} devices; pass a multiple of {devices * config.train.accumulation}"
        )
    return mode


def make_steps(config: Config, optimizer: optax.GradientTransformation) -> tuple[Model, Steps]:
    """The model, and its train and eval step on the devices there are."""
    mode = choose_mode(config)
    if mode == "jit":
        model = make_model(config)
        steps = Steps(
            mode,
            train=jax.jit(partial(train_step, config, model, optimizer), donate_argnums=0),
            evaluate=jax.jit(lambda state, batch: eval_step(model, state.params, state.buffers, batch)),
            place_state=jax.device_put,
            place_train_batch=jax.device_put,
            place_eval_batch=jax.device_put,
        )
        return model, steps

    model = make_model(config, axis_name=AXIS)
    n = jax.local_device_count()
    # The state has no device axis: in_axes=None replicates it, out_axes=None returns it as one replicated array.
    train = jax.pmap(
        partial(train_step, config, model, optimizer, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )
    evaluate = jax.pmap(
        lambda state, batch: eval_step(model, state.params, state.buffers, batch, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
    )
    steps = Steps(
        mode,
        train=train,
        evaluate=evaluate,
        place_state=jax.device_put,
        place_train_batch=lambda batch: {name: _split_examples(x, n, axis=1) for name, x in batch.items()},
        place_eval_batch=lambda batch: {name: _split_examples(x, n, axis=0) for name, x in batch.items()},
    )
    return model, steps


def _split_examples(x: np.ndarray, n: int, axis: int) -> np.ndarray:
    """(A, B, ...) or (B, ...) -> (N, A, B/N, ...) or (N, B/N, ...)."""
    shape = x.shape
    parts = x.reshape(*shape[:axis], n, shape[axis] // n, *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(parts, axis, 0))


def describe_devices(mode: str) -> str:
    """One line for the head of a run."""
    device: Any = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}), {mode}"
