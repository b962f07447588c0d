"""A Keras model on the backend JAX: its layers are named, with the products of those that apply an activation."""

import os

import jax
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

import parity  # noqa: E402
from tests.helpers.blocks import LAYERS, D, F, L, V, X, blocks, compared, layer, layers_named  # noqa: E402
from twinstep.errors import UserError  # noqa: E402


class Block(keras.Layer):
    def __init__(self, eps, name):
        super().__init__(name=name)
        self.norm = keras.layers.LayerNormalization(epsilon=eps, name="norm")
        self.up = keras.layers.Dense(F, activation="tanh", name="up")
        self.down = keras.layers.Dense(D, name="down")

    def build(self, shape):
        self.norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], F))
        self.built = True

    def call(self, x):
        return x + self.down(self.up(self.norm(x)))


class Subclassed(keras.Model):
    def __init__(self, eps=1e-5):
        super().__init__()
        self.blocks = [Block(eps, f"layers_{i}") for i in range(L)]
        self.head = keras.layers.Dense(V, name="head")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Twice(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.other = (keras.layers.Dense(D, name="same") for _ in range(2))

    def call(self, x):
        return self.other(self.one(x))


def functional():
    x = inputs = keras.Input((D,))
    for i in range(L):
        x = Block(1e-5, f"layers_{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(V, name="head")(x))


def built(model):
    model(X)
    return model


def params():
    held = {f"layers_{i}": block for i, block in enumerate(blocks(scale="gamma", shift="beta"))}
    return {**held, "head": layer("head")}


@pytest.mark.parametrize("make", [Subclassed, functional])
def test_the_layers_and_params_of_a_model_are_named_by_their_paths(make):
    function, own = parity.keras_function(built(make()))
    assert jax.tree.structure(own) == jax.tree.structure(params())
    activations = {f"layers.{i}.up.activation" for i in range(L)}
    assert {name for name in layers_named(function, own) if "input" not in name} == LAYERS | activations


@pytest.mark.parametrize(("eps", "verdict", "first"), [(1e-5, "agrees", ""), (1e-6, "diverges", "layers.0.norm")])
def test_a_keras_model_is_judged_layer_by_layer(eps, verdict, first):
    function, _ = parity.keras_function(built(Subclassed(eps)))
    assert compared(function, params()) == (verdict, first, LAYERS)


def test_statistics_are_buffers_that_a_call_in_training_changes():
    model = keras.Sequential([keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dropout(0.0)])
    model.build((None, D))
    function, own, buffers = parity.keras_function_with_buffers(model, training=True)
    _, after = function(own, buffers, X)
    (before,), (changed,) = buffers.values(), after.values()
    assert set(before) == set(changed) == {"moving_mean", "moving_variance"}
    np.testing.assert_allclose(changed["moving_mean"], 0.1 * X.mean(0), rtol=1e-5)


def test_a_model_without_variables_or_with_two_of_one_name_is_refused():
    with pytest.raises(UserError, match="has no variables yet; call it once before"):
        parity.keras_function(Subclassed())
    with pytest.raises(UserError, match=r"two variables of the name 'same\.bias'; rename a layer"):
        parity.keras_function(built(Twice()))
