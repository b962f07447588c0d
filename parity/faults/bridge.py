"""Faults of the weights: how they are carried over, their dtype, their initialization."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_impl.models as models
from jax_impl.tree import flatten, unflatten
from parity import own_bridge
from parity.faults.fault import Fault, swap


def altered_bridge(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Any:
    """The bridge with the parameters it hands over changed."""
    bridge = own_bridge.torch_to_jax

    def faulty(model: models.Model, arrays: Any) -> tuple[Any, Any]:
        params, buffers = bridge(model, arrays)
        return unflatten(change(flatten(params))), buffers

    return swap(bridge, faulty)


def square_transposed(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    square = {name for name, w in flat.items() if w.ndim == 2 and w.shape[0] == w.shape[1]}
    return {name: w.T if name in square else w for name, w in flat.items()}


def keys_and_values_swapped(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    other = {"c_k": "c_v", "c_v": "c_k"}
    return {name: flat[".".join(other.get(part, part) for part in name.split("."))] for name in flat}


def statistics_not_carried_over() -> Any:
    bridge = own_bridge.torch_to_jax

    def faulty(model: models.Model, arrays: Any) -> tuple[Any, Any]:
        params, buffers = bridge(model, arrays)
        return params, {
            "norm": {
                "running_mean": 0 * buffers["norm"]["running_mean"],
                "running_var": buffers["norm"]["running_var"] ** 0,
            }
        }

    return swap(bridge, faulty)


@contextmanager
def x64_off() -> Iterator[None]:
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns that it truncates, and a user may overlook it
        yield


def in_bfloat16() -> Any:
    make_model = models.make_model

    def faulty(*args: Any) -> models.Model:
        model = make_model(*args)
        return model._replace(params=jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.bfloat16), model.params))

    return swap(make_model, faulty)


def drawn_anew(shapes: models.Tree, arrays: Any) -> models.Tree:
    return jax.tree.map(lambda s: jax.random.normal(jax.random.key(0), s.shape, s.dtype) * 0.02, shapes)


FAULTS = (
    Fault(
        "linear transposed on the bridge",
        "gpt",
        "weights",
        "a weight copied without its transpose; no shape error where it is square (many ports)",
        altered_bridge(square_transposed),
    ),
    Fault(
        "keys and values swapped",
        "gpt",
        "weights",
        "two weights of one shape exchanged by the name map",
        altered_bridge(keys_and_values_swapped),
    ),
    Fault(
        "running statistics not carried over",
        "mlp",
        "weights",
        "only parameters are carried over, BatchNorm starts afresh",
        statistics_not_carried_over(),
    ),
    Fault(
        "float64 silently float32",
        "linear",
        "weights",
        "jax_enable_x64 is off: float64 is asked for and float32 given (jax issue 1333)",
        x64_off,
    ),
    Fault(
        "parameters in bfloat16",
        "linear",
        "weights",
        "no float32 master weights: small updates and decay vanish (torchao PR 1124)",
        in_bfloat16(),
    ),
    Fault(
        "own initialization",
        "mlp",
        "weights",
        "each framework starts from its own default initialization (flax issue 3125)",
        swap(models.load_tree, drawn_anew),
    ),
)
