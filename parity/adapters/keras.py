"""Keras' models, on its backend JAX, as functions that tag."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import keras

from jax_impl.tree import flatten, unflatten
from parity.adapters.tags import Function, calls_tagged, of_source, tagged
from twinstep.errors import UserError

FUSED = (  # layers that may apply an activation to their product
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def keras_function(model: keras.Model, **kwargs: Any) -> tuple[Function, dict[str, Any]]:
    """A Keras model, built, as a function (params, *inputs), and its params: a nested dict of arrays by path.

    Tags are the paths of its layers, joined by dots, without the model's own name: "encoder.dense_1". A layer with an
    activation of its own has its product under its path, as torch's has, and its output under "dense_1.activation".
    kwargs go to the model's call, `training=False` for example. See `keras_function_with_buffers` for training.
    """
    function, params, buffers = keras_function_with_buffers(model, **kwargs)
    return of_source(lambda params, *inputs, **named: function(params, buffers, *inputs, **named)[0], model), params


def keras_function_with_buffers(model: keras.Model, **kwargs: Any) -> tuple[Function, dict[str, Any], dict[str, Any]]:
    """A Keras model as a function (params, buffers, *inputs) -> (output, buffers), its params, and its buffers.

    Buffers are what is not trained and floating, such as BatchNormalization's statistics; random states stay as they
    are. Raises UserError for another backend than JAX, a model that is not built, and variables of one name.
    """
    if keras.config.backend() != "jax":
        raise UserError(f"Keras runs on {keras.config.backend()}; set KERAS_BACKEND=jax before it is imported")
    if not model.built or not model.variables:
        raise UserError(f"the Keras model {model.name!r} has no variables yet; call it once before")
    names = {
        id(variable): variable.path.removeprefix(f"{model.name}/").replace("/", ".") for variable in model.variables
    }
    if twice := sorted(name for name, count in Counter(names.values()).items() if count > 1):
        raise UserError(f"the Keras model {model.name!r} has two variables of the name {twice[0]!r}; rename a layer")
    trained, rest = model.trainable_variables, model.non_trainable_variables
    held = [variable for variable in rest if "float" in variable.dtype]

    def function(params: Any, buffers: Any, *inputs: Any, **named: Any) -> Any:
        given, fixed = flatten(params), flatten(buffers)
        before = [fixed.get(names[id(variable)], variable.value) for variable in rest]
        with tags(model):
            trained_values = [given[names[id(variable)]] for variable in trained]
            output, after = model.stateless_call(trained_values, before, *inputs, **named, **kwargs)
        kept = {id(variable): value for variable, value in zip(rest, after, strict=True)}
        return output, unflatten({names[id(variable)]: kept[id(variable)] for variable in held})

    def values(variables: list[Any]) -> dict[str, Any]:
        return unflatten({names[id(variable)]: variable.value for variable in variables})

    return of_source(function, model), values(trained), values(held)


@contextmanager
def tags(model: keras.Model) -> Iterator[None]:
    """Every call of a layer of the model tags its output with its path."""
    names, products = {}, []
    for name, layer in layers_of(model):
        fused = isinstance(layer, FUSED) and layer.activation is not keras.activations.linear
        names[id(layer)] = f"{name}.activation" if fused else name
        if fused:
            products.append((layer, before_activation(layer.activation, name)))
    with ExitStack() as stack:
        for layer, activation in products:
            stack.enter_context(mock.patch.object(layer, "activation", activation))
        classes = {type(layer) for _, layer in layers_of(model)}
        stack.enter_context(calls_tagged(classes, lambda layer: names.get(id(layer), "")))
        yield


def before_activation(activation: Any, name: str) -> Any:
    """The activation of a product that has this tag."""
    return lambda product: activation(tagged(product, name))


def layers_of(layer: keras.Layer, path: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """The layers within one at any depth, by their paths, each once."""
    for part in layer._flatten_layers(include_self=False, recursive=False):
        name = f"{path}.{part.name}" if path else part.name
        yield name, part
        yield from layers_of(part, name)
