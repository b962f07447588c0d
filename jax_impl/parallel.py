"""Where the pure step runs: one device, data parallel over several, or sharded over them (`fsdp.py`).

Shapes: N devices of this process, A micro-steps, B batch (of this process).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_impl import cpu, fsdp
from jax_impl.losses import Sums
from jax_impl.mesh import array_spec, batch_spec, make_mesh
from jax_impl.models import Model
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.models.cudnn import cudnn_attention
from jax_impl.step import Axes, Batch, State, eval_step, init_state, train_step
from jax_impl.tree import flatten
from twinstep.config import Config, check_shards
from twinstep.errors import UserError

AXIS = "data"


class Steps(NamedTuple):
    """The steps, compiled on first use, and the functions that place arrays on their devices.

    `train` donates its state: the old one is gone after the call. Its `signal` is a number of this process; over
    several devices the metrics hold the largest. Batches are this process's shard of the global one. `global_state`
    gives the same state as global arrays, of all processes' devices, which orbax needs; `local_params` are parameters
    that one process can compute with alone.
    """

    train: Callable[..., tuple[State, dict[str, jax.Array]]]  # (state, batch, signal=0)
    compiled: Any  # what `train` calls: the result of jax.jit or jax.pmap
    evaluate: Callable[[State, Batch], Sums]
    init_state: Callable[[dict[str, np.ndarray]], State]
    place_state: Callable[[State], State]
    place_train_batch: Callable[[dict[str, np.ndarray]], Any]
    place_eval_batch: Callable[[dict[str, np.ndarray]], Any]
    global_state: Callable[[State], State]
    local_params: Callable[[State], Any]


def set_precision(config: Config) -> None:
    """Process-wide switches of the arithmetic; call before any array is made.

    float64 is silently float32 unless jax_enable_x64 is on; float32 products may be TF32 or bfloat16 passes on
    accelerators unless the precision says otherwise.
    """
    jax.config.update("jax_enable_x64", config.train.dtype == "float64")
    jax.config.update("jax_default_matmul_precision", config.train.matmul_precision)


def choose_mode(config: Config) -> str:
    """What `--parallel auto` means here. Raises UserError for a mode that cannot run here."""
    devices = jax.device_count()
    mode = config.devices.parallel
    if mode == "auto":
        mode = "jit" if devices == 1 and jax.default_backend() == "cpu" else "pmap"
    if mode == "jit" and devices > 1:
        raise UserError(f"--parallel jit uses one device, but there are {devices}; pass --parallel pmap")
    check_shards(config.batch_size, config.train.accumulation, devices)
    return mode


def axis_name(mode: str) -> Axes:
    """The mapped axis, or axes, over which the model's BatchNorm takes its statistics; None on one device."""
    axes: dict[str, Axes] = {"jit": None, "pmap": AXIS, "fsdp": make_mesh().axis_names}
    return axes[mode]


def attention(platform: str | None = None) -> Callable[..., jax.Array]:
    """The fastest form of gpt's attention on these devices; every form gives what `causal_attention` gives.

    platform: of devices that are not here.
    """
    match platform or jax.default_backend():
        case "tpu":
            from jax_impl.models.splash import splash_attention  # Pallas takes a second to import

            return splash_attention
        case "gpu":
            return cudnn_attention
    return blockwise_attention


def scans_blocks(mode: str) -> bool:
    """Whether gpt's blocks are one loop: so that fsdp gathers the weights of one block at a time."""
    return mode == "fsdp" and fsdp.gathers_late()


def muon_stacks(mode: str) -> tuple[bool, Mesh | None]:
    """Whether Muon stacks its matrices (not on a single CPU), and the mesh over which the stacks are sharded."""
    mesh = make_mesh() if mode == "fsdp" else None
    return mesh is not None or jax.default_backend() != "cpu", mesh


def make_steps(config: Config, mode: str, model: Model, optimizer: optax.GradientTransformation) -> Steps:
    """The train and eval step on the devices there are."""
    make = {"jit": jit_steps, "pmap": pmap_steps, "fsdp": fsdp_steps}[mode]
    return make(config, model, optimizer)


def jit_steps(config: Config, model: Model, optimizer: optax.GradientTransformation) -> Steps:
    """One device."""
    options = cpu.compiler_options()
    step = jax.jit(partial(train_step, config, model, optimizer), donate_argnums=0, compiler_options=options)
    return Steps(
        train=lambda state, batch, signal=0: step(state, batch),
        compiled=step,
        evaluate=jax.jit(
            lambda state, batch: eval_step(model, state.params, state.buffers, batch), compiler_options=options
        ),
        init_state=lambda weights: jax.device_put(init_state(model, optimizer, weights, config.train.seed)),
        place_state=jax.device_put,
        place_train_batch=jax.device_put,
        place_eval_batch=jax.device_put,
        global_state=lambda state: state,
        local_params=lambda state: state.params,
    )


def pmap_steps(config: Config, model: Model, optimizer: optax.GradientTransformation) -> Steps:
    """The state replicated, the examples sharded; a psum adds the gradients before the optimizer."""
    n = jax.local_device_count()
    # The state has no device axis: in_axes=None replicates it, out_axes=None returns it as one replicated array.
    step = jax.pmap(
        with_signal(
            partial(train_step, config, model, optimizer, axis_name=AXIS), partial(jax.lax.pmax, axis_name=AXIS)
        ),
        axis_name=AXIS,
        in_axes=(None, 0, 0),
        out_axes=(None, None),
        donate_argnums=0,
    )
    evaluate = jax.pmap(
        lambda state, batch: eval_step(model, state.params, state.buffers, batch, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
    )
    here = NamedSharding(Mesh(np.array(jax.local_devices()), AXIS), PartitionSpec())
    everywhere = Mesh(np.array(jax.devices()), AXIS)
    return Steps(
        train=lambda state, batch, signal=0: step(state, batch, np.full(n, signal, np.int32)),
        compiled=step,
        evaluate=evaluate,
        init_state=lambda weights: jax.device_put(init_state(model, optimizer, weights, config.train.seed), here),
        place_state=lambda state: jax.device_put(state, here),
        place_train_batch=lambda batch: {name: _split_examples(x, n, axis=1) for name, x in batch.items()},
        place_eval_batch=lambda batch: {name: _split_examples(x, n, axis=0) for name, x in batch.items()},
        global_state=lambda state: multihost_utils.host_local_array_to_global_array(state, everywhere, PartitionSpec()),
        local_params=lambda state: state.params,
    )


def fsdp_steps(config: Config, model: Model, optimizer: optax.GradientTransformation) -> Steps:
    """Parameters, optimizer state and examples all sharded: a jitted step whose arrays carry their shardings."""
    mesh = make_mesh()
    shapes = flatten(model.params) | flatten(model.buffers)
    start = partial(init_state, model, optimizer, seed=config.train.seed)
    shardings = fsdp.state_shardings(jax.eval_shape(start, shapes), mesh)
    start_sharded = jax.jit(start, out_shardings=shardings)
    step = fsdp_train(config, model, optimizer, mesh, shardings)

    def place(x: Any, sharding: NamedSharding, dtype: Any = None) -> jax.Array:
        """Every process holds all of x and puts its shards on its devices."""
        x = np.asarray(x, dtype)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def start_from(weights: dict[str, np.ndarray]) -> State:
        """No device ever holds all of a parameter or of the optimizer state."""
        placed = {
            name: place(weights[name], NamedSharding(mesh, array_spec(s.shape, mesh)), s.dtype)
            for name, s in shapes.items()
        }
        return start_sharded(placed)

    return Steps(
        train=lambda state, batch, signal=0: step(
            state, batch, _place_examples(np.full(jax.local_device_count(), signal, np.int32), mesh, axis=0)
        ),
        compiled=step,
        evaluate=jax.jit(partial(fsdp.sharded_eval_step, mesh, jnp.dtype(config.train.dtype), model)),
        init_state=start_from,
        place_state=lambda state: jax.tree.map(place, state, shardings),
        place_train_batch=lambda batch: {name: _place_examples(x, mesh, axis=1) for name, x in batch.items()},
        place_eval_batch=lambda batch: {name: _place_examples(x, mesh, axis=0) for name, x in batch.items()},
        global_state=lambda state: state,
        local_params=lambda state: (
            multihost_utils.process_allgather(state.params, tiled=True) if jax.process_count() > 1 else state.params
        ),
    )


def fsdp_train(
    config: Config, model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, shardings: Any
) -> Any:
    """The jitted train step over a mesh, whose devices need not be attached: `aot/` compiles it for others."""
    gradients = fsdp.sharded_gradients(mesh, jnp.dtype(config.train.dtype))
    return jax.jit(
        with_signal(partial(train_step, config, model, optimizer, gradients=gradients), jnp.max),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
    )


def with_signal(step: Callable[[State, Batch], Any], largest: Callable[[jax.Array], jax.Array]) -> Callable[..., Any]:
    """The step with one more argument, a number per device, and the largest of them among its metrics.

    The number is made to depend on the loss, so that its collective comes last: XLA on a CPU runs a collective that
    depends on nothing while those of a loop run, in another order on each process, and gloo then mixes them up.
    """

    def train(state: State, batch: Batch, signal: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        state, metrics = step(state, batch)
        return state, {**metrics, "signal": largest(jnp.where(metrics["loss"] > -jnp.inf, signal, 0))}

    return train


def _split_examples(x: np.ndarray, n: int, axis: int) -> np.ndarray:
    """(A, B, ...) or (B, ...) -> (N, A, B/N, ...) or (N, B/N, ...)."""
    shape = x.shape
    parts = x.reshape(*shape[:axis], n, shape[axis] // n, *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(parts, axis, 0))


def _place_examples(x: np.ndarray, mesh: Mesh, axis: int) -> jax.Array:
    """This process's examples as its shards of a global array; which of its devices gets which does not matter."""
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    parts = [
        jax.device_put(part, device) for part, device in zip(np.split(x, len(devices), axis), devices, strict=True)
    ]
    shape = (*x.shape[:axis], x.shape[axis] * jax.process_count(), *x.shape[axis + 1 :])
    sharding = NamedSharding(mesh, batch_spec(mesh, axis))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)
