"""Where the pure step runs: one device, or data parallel over several. The only file that knows of devices.

Shapes: N devices of this process, A micro-steps, B batch.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl.losses import Sums
from jax_impl.models import Model
from jax_impl.step import Batch, State, eval_step, train_step
from recipe.config import Config
from recipe.errors import UserError

AXIS = "data"


class Steps(NamedTuple):
    """The steps, compiled on first use. `train` donates its state: the old one is gone after the call."""

    train: Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[[State, Batch], Sums]
    place_state: Callable[[State], State]
    place_train_batch: Callable[[dict[str, np.ndarray]], Any]
    place_eval_batch: Callable[[dict[str, np.ndarray]], Any]


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


def axis_name(mode: str) -> str | None:
    """The mapped axis that the model's BatchNorm reduces over: only pmap has one."""
    return AXIS if mode == "pmap" else None


def make_steps(config: Config, mode: str, model: Model, optimizer: optax.GradientTransformation) -> Steps:
    """The train and eval step on the devices there are."""
    if mode == "jit":
        return Steps(
            train=jax.jit(partial(train_step, config, model, optimizer), donate_argnums=0),
            evaluate=jax.jit(lambda state, batch: eval_step(model, state.params, state.buffers, batch)),
            place_state=jax.device_put,
            place_train_batch=jax.device_put,
            place_eval_batch=jax.device_put,
        )
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
    return Steps(
        train=train,
        evaluate=evaluate,
        place_state=jax.device_put,
        place_train_batch=lambda batch: {name: _split_examples(x, n, axis=1) for name, x in batch.items()},
        place_eval_batch=lambda batch: {name: _split_examples(x, n, axis=0) for name, x in batch.items()},
    )


def _split_examples(x: np.ndarray, n: int, axis: int) -> np.ndarray:
    """(A, B, ...) or (B, ...) -> (N, A, B/N, ...) or (N, B/N, ...)."""
    shape = x.shape
    parts = x.reshape(*shape[:axis], n, shape[axis] // n, *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(parts, axis, 0))


def describe_devices(mode: str) -> str:
    """One line for the head of a run."""
    device: Any = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}), {mode}"


# Peak matrix-product rate of one device in bfloat16, FLOP/s, by a part of `device_kind`; the makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
}


def peak_flops(config: Config) -> float | None:
    """FLOP/s that all devices together could reach: from the table, on a CPU measured, None for an unknown kind."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        return measured_matmul_flops(config)  # forced CPU devices share the machine's cores
    known = [name for name in PEAK_FLOPS if name in kind]
    return jax.device_count() * PEAK_FLOPS[max(known, key=len)] if known else None


def measured_matmul_flops(config: Config, size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products in the compute type."""
    x = jnp.ones((size, size), config.train.dtype)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
