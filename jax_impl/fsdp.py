"""Parameters and optimizer state sharded over all devices: what `--parallel fsdp` adds to a jitted step.

Every array is sharded along one dimension. The forward and backward pass run in a `shard_map`, each device on its own
examples. A parameter is gathered where the model reads it, and its gradient goes back to the shards by a
reduce-scatter. All that follows (clipping, momentum, update) works on sharded arrays, and XLA's partitioner adds what
it needs.

Shapes: A micro-steps, B batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_impl.losses import Sums
from jax_impl.mesh import array_spec, batch_spec, shard_dim
from jax_impl.models import Model
from jax_impl.step import Batch, State, eval_step, summed_gradients
from jax_impl.tree import Tree, flatten

# Tables that are looked up: their gradient is a sum over tokens, so they keep their own dtype until after the lookup.
LOOKUPS = ("wte.weight", "embedding.weight")


def state_shardings(state: State, mesh: Mesh) -> Any:
    """A sharding per array of a state (arrays or shapes): parameters and optimizer state are sharded, no others."""

    def sharded(tree: Any) -> Any:
        return jax.tree.map(lambda x: NamedSharding(mesh, array_spec(x.shape, mesh)), tree)

    replicated: Any = NamedSharding(mesh, PartitionSpec())
    buffers = jax.tree.map(lambda _: replicated, state.buffers)
    return State(sharded(state.params), buffers, sharded(state.opt_state), replicated, replicated)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather(
    shard: jax.Array, dim: int | None, axis_names: tuple[str, ...], dtype: jnp.dtype, param_dtype: jnp.dtype
) -> jax.Array:
    """All-gather a parameter in `dtype` from its shards; the gradient is reduce-scattered in `param_dtype`.

    Without the rule for the gradient, JAX would sum it in `dtype`, and in bfloat16 over 256 devices that is noise.
    """
    shard = shard.astype(dtype)
    return shard if dim is None else jax.lax.all_gather(shard, axis_names, axis=dim, tiled=True)


def _gather_forward(shard: jax.Array, *static: Any) -> tuple[jax.Array, None]:
    return gather(shard, *static), None


def _gather_backward(
    dim: int | None,
    axis_names: tuple[str, ...],
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    residual: None,
    grad: jax.Array,
) -> tuple[jax.Array]:
    grad = grad.astype(param_dtype)
    if dim is None:
        return (jax.lax.psum(grad, axis_names),)
    for axis_name in axis_names:  # one ring of the torus after the other
        grad = jax.lax.psum_scatter(grad, axis_name, scatter_dimension=dim, tiled=True)
    return (grad,)


gather.defvjp(_gather_forward, _gather_backward)


class ShardedParam(nnx.Param):
    """A parameter that holds a device's shard inside a `shard_map`, and is gathered when a module reads it."""

    def get_value(self, **kwargs: Any) -> jax.Array:
        """The parameter, all-gathered; matrices in the compute dtype, so that devices exchange fewer bytes."""
        shard = super().get_value(**kwargs)
        dim, axis_names, dtype = self.get_metadata("gather")
        return gather(shard, dim, axis_names, dtype, shard.dtype)


def gathers_late() -> bool:
    """Whether a parameter is gathered where a module reads it. In several processes on CPUs all are gathered first.

    Among other computations, in loops or in rematerialized blocks, all-gathers may start in another order on each
    process, and gloo then waits for ever.
    """
    return jax.default_backend() != "cpu" or jax.process_count() == 1


def sharded_model(model: Model, mesh: Mesh, dtype: jnp.dtype) -> Model:
    """The same model for parameters that come as shards. dtype: the compute dtype."""
    shapes = flatten(model.params)

    def param(name: str, shard: jax.Array) -> nnx.Param:
        shape = shapes[name].shape
        gather_dtype = dtype if len(shape) > 1 and name not in LOOKUPS else shapes[name].dtype
        sharded = ShardedParam(shard, gather=(shard_dim(shape, mesh.size), mesh.axis_names, gather_dtype))
        return sharded if gathers_late() else nnx.Param(sharded.get_value())

    return model._replace(param=param)


def sharded_gradients(mesh: Mesh, dtype: jnp.dtype) -> Callable[..., tuple[Sums, Tree, Tree]]:
    """`step.summed_gradients` over all devices, for sharded parameters and gradients, inside a jitted step."""

    def gradients(model: Model, params: Tree, buffers: Tree, batch: Batch, key: jax.Array) -> tuple[Sums, Tree, Tree]:
        def on_device(params: Tree, buffers: Tree, batch: Batch, key: jax.Array) -> tuple[Sums, Tree, Tree]:
            key = jax.random.fold_in(key, jax.lax.axis_index(mesh.axis_names))
            sums, buffers, grads = summed_gradients(sharded_model(model, mesh, dtype), params, buffers, batch, key)
            return jax.lax.psum(sums, mesh.axis_names), buffers, grads

        specs = jax.tree.map(lambda s: array_spec(s.shape, mesh), model.params)
        replicated = PartitionSpec()
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, replicated, batch_spec(mesh, 1), replicated),
            out_specs=(replicated, replicated, specs),
            check_vma=False,  # a custom_vjp cannot declare that what `gather` returns is replicated
        )(params, buffers, batch, key)

    return gradients


def sharded_eval_step(mesh: Mesh, dtype: jnp.dtype, model: Model, state: State, batch: Batch) -> Sums:
    """`step.eval_step` over all devices, for sharded parameters."""

    def on_device(params: Tree, buffers: Tree, batch: Batch) -> Sums:
        return eval_step(sharded_model(model, mesh, dtype), params, buffers, batch, mesh.axis_names)

    specs = jax.tree.map(lambda s: array_spec(s.shape, mesh), model.params)
    replicated = PartitionSpec()
    in_specs = (specs, replicated, batch_spec(mesh, 0))
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=replicated, check_vma=False)(
        state.params, state.buffers, batch
    )
