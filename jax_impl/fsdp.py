"""Parameters and optimizer state divided among all devices: what `--parallel fsdp` adds to a jitted step.

Every array is divided along one dimension. The forward and backward pass run in a `shard_map`, each device on its
own examples: whole parameters are gathered for it, and their gradients scattered, summed, back to the owners. All
that follows (clipping, momentum, update) works on divided arrays, and XLA's partitioner adds what it needs.

Shapes: N matrices of one shape stacked, M rows, K columns, A micro-steps, B batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_impl.losses import Sums
from jax_impl.models import Model
from jax_impl.models.gpt import GPT
from jax_impl.step import Batch, State, eval_step, summed_gradients
from jax_impl.tree import Tree, flatten, unflatten

# Tables that are looked up: their gradient is a sum over tokens, so they keep their type until after the lookup.
LOOKUPS = ("wte.weight", "embedding.weight")


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """One mesh over all devices: a line, or on a TPU the axes of its torus.

    XLA reduces and scatters along the rings of a torus; over a line of its 16 chips it falls back on reducing whole
    gradients everywhere, at twice the bytes (seen in the compiled program for v5e:4x4).
    """
    devices = jax.devices() if devices is None else devices
    torus = torus_shape(devices)
    if len(torus) < 2:
        return Mesh(np.array(devices), ("data",))
    grid = mesh_utils.create_device_mesh(torus, devices)
    return Mesh(grid, tuple(f"data_{n}" for n in range(len(torus))))


def torus_shape(devices: Sequence[Any]) -> tuple[int, ...]:
    """The sides longer than 1 of the box that these TPU chips fill; () for other devices or an odd set of chips."""
    if devices[0].platform != "tpu":
        return ()
    coords = np.array([device.coords for device in devices])
    sides = tuple(int(side) for side in np.ptp(coords, axis=0) + 1 if side > 1)
    return sides if np.prod(sides) == len(devices) else ()


def divided_dim(shape: Sequence[int], devices: int) -> int | None:
    """The first dimension that all devices can share evenly; None if there is none.

    A TPU stores the last dimension in rows of 128 numbers. Divided along it, shares that are no multiple of that are
    padded, and XLA scatters nothing there but reduces the whole everywhere (seen in the program for v5e:4x4).
    """
    return next((dim for dim, size in enumerate(shape) if size and size % devices == 0), None)


def array_spec(shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How one parameter, or one array of optimizer state, is divided; whole on every device if it cannot be."""
    dim = divided_dim(shape, mesh.size)
    return PartitionSpec() if dim is None else PartitionSpec(*[None] * dim, mesh.axis_names)


def state_shardings(state: State, mesh: Mesh) -> Any:
    """A sharding per array of a state (arrays or shapes): parameters and optimizer state divided, the rest whole."""

    def divided(tree: Any) -> Any:
        return jax.tree.map(lambda x: NamedSharding(mesh, array_spec(x.shape, mesh)), tree)

    whole: Any = NamedSharding(mesh, PartitionSpec())
    buffers = jax.tree.map(lambda _: whole, state.buffers)
    return State(divided(state.params), buffers, divided(state.opt_state), whole, whole)


def batch_spec(mesh: Mesh, dim: int) -> PartitionSpec:
    """Examples, dimension `dim`, divided among all devices."""
    return PartitionSpec(*[None] * dim, mesh.axis_names)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather(
    shard: jax.Array, dim: int | None, axis_names: tuple[str, ...], dtype: jnp.dtype, param_dtype: jnp.dtype
) -> jax.Array:
    """A whole parameter in `dtype` from the devices' shards; its gradient is summed and scattered in `param_dtype`.

    Without the rule for the gradient, JAX would sum it in `dtype`, and in bfloat16 over 256 devices that is noise.
    """
    shard = shard.astype(dtype)
    return shard if dim is None else jax.lax.all_gather(shard, axis_names, axis=dim, tiled=True)


def gather_forward(shard, dim, axis_names, dtype, param_dtype):
    return gather(shard, dim, axis_names, dtype, param_dtype), None


def gather_backward(dim, axis_names, dtype, param_dtype, residual, grad):
    grad = grad.astype(param_dtype)
    if dim is None:
        return (jax.lax.psum(grad, axis_names),)
    for axis_name in axis_names:  # one ring of the torus after the other
        grad = jax.lax.psum_scatter(grad, axis_name, scatter_dimension=dim, tiled=True)
    return (grad,)


gather.defvjp(gather_forward, gather_backward)


class GatheringModel(NamedTuple):
    """A model whose parameters come as shards, inside a `shard_map`; used in place of a `Model` by the pure step."""

    model: Model
    mesh: Mesh
    dtype: jnp.dtype  # of the computation: matrices travel in it

    def bind(self, params: Tree, buffers: Tree, *, train: bool) -> Any:
        """See `Model.bind`. The blocks of a GPT stay shards: its loop fetches the weights of one at a time.

        Not so in several processes on CPUs, where all are gathered first: gathers inside a loop and beside it may
        start in another order on each process, and gloo then waits for ever.
        """
        loop = jax.default_backend() != "cpu" or jax.process_count() == 1
        shards = flatten(params)
        whole = {name: x if loop and name.startswith("h.") else self.gather(name, x) for name, x in shards.items()}
        module = self.model.bind(unflatten(whole), buffers, train=train)
        if loop and isinstance(module, GPT):
            module.fetch = self.fetch
        return module

    def fetch(self, block: nnx.State) -> nnx.State:
        """The whole weights of a block from its shards."""
        whole = {
            path: x.replace(self.gather(".".join(map(str, ("h", 0, *path))), x.get_value()))
            for path, x in nnx.to_flat_state(block)
        }
        return nnx.from_flat_state(whole)

    def gather(self, name: str, shard: jax.Array) -> jax.Array:
        """One parameter, whole."""
        shape = flatten(self.model.params)[name].shape
        dtype = self.dtype if len(shape) > 1 and name not in LOOKUPS else shard.dtype
        return gather(shard, divided_dim(shape, self.mesh.size), self.mesh.axis_names, dtype, shard.dtype)

    def buffers_of(self, module: Any) -> Tree:
        """See `Model.buffers_of`."""
        return self.model.buffers_of(module)


def divided_gradients(mesh: Mesh, dtype: jnp.dtype) -> Callable[..., tuple[Sums, Tree, Tree]]:
    """`step.summed_gradients` over all devices, for divided parameters and gradients, inside a jitted step."""

    def gradients(model: Model, params: Tree, buffers: Tree, batch: Batch, key: jax.Array) -> tuple[Sums, Tree, Tree]:
        def on_device(params, buffers, batch, key):
            key = jax.random.fold_in(key, jax.lax.axis_index(mesh.axis_names))
            gathering: Any = GatheringModel(model, mesh, dtype)
            sums, buffers, grads = summed_gradients(gathering, params, buffers, batch, key)
            return jax.lax.psum(sums, mesh.axis_names), buffers, grads

        specs = jax.tree.map(lambda s: array_spec(s.shape, mesh), model.params)
        whole = PartitionSpec()
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, whole, batch_spec(mesh, 1), whole),
            out_specs=(whole, whole, specs),
            check_vma=False,  # what `gather` returns is the same on all devices, which its rule cannot say
        )(params, buffers, batch, key)

    return gradients


def divided_eval_step(mesh: Mesh, dtype: jnp.dtype, model: Model, state: State, batch: Batch) -> Sums:
    """`step.eval_step` over all devices, for divided parameters."""

    def on_device(params, buffers, batch):
        gathering: Any = GatheringModel(model, mesh, dtype)
        return eval_step(gathering, params, buffers, batch, mesh.axis_names)

    specs = jax.tree.map(lambda s: array_spec(s.shape, mesh), model.params)
    whole = PartitionSpec()
    in_specs = (specs, whole, batch_spec(mesh, 0))
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=whole, check_vma=False)(
        state.params, state.buffers, batch
    )


def divide_stack(mesh: Mesh) -> Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]:
    """How Muon's stacks are worked on: (function, x (N, M, K)) -> function(x), each device with a share of the N.

    The parts of each matrix go to the device that works on it and back: two all-to-alls of the stack's size over the
    number of devices, where gathering would bring every matrix to every device. N is filled up with zeros to a
    multiple of the devices; nanochat's DistMuon shares them out likewise.
    """

    def run(function: Callable[[jax.Array], jax.Array], x_NMK: jax.Array) -> jax.Array:
        by_matrix = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        by_dim = NamedSharding(mesh, PartitionSpec(None, *array_spec(x_NMK.shape[1:], mesh)))
        count = x_NMK.shape[0]
        x_NMK = jnp.pad(x_NMK, ((0, -count % mesh.size), (0, 0), (0, 0)))
        x_NMK = jax.lax.with_sharding_constraint(x_NMK, by_matrix)
        y_NMK = jax.lax.with_sharding_constraint(function(x_NMK), by_matrix)
        return jax.lax.with_sharding_constraint(y_NMK, by_dim)[:count]

    return run
