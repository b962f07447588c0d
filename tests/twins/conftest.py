"""Both implementations behind one face: a test that takes `twin` runs once for each, NumPy arrays in and out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_impl.models
import torch_ref.models
from jax_impl.tree import flatten
from torch_ref.input import to_tensors
from twinstep.config import Config


@dataclass(frozen=True)
class Twin:
    """One of the two. Its results need no counterpart of `array`: NumPy reads the arrays of both."""

    room: str
    array: Callable[[Any], Any]  # of the framework, in NumPy's type, class numbers in that of its losses
    gradient: Callable[[Callable[[Any], Any], np.ndarray], Any]  # of the sum of a function's values
    parameter_names: Callable[[Config], list[str]]

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.room}.{name}")


def jax_gradient(function, x):
    return jax.grad(lambda x: function(x).sum())(jnp.asarray(x))


def torch_array(x):
    return to_tensors({"x": np.array(x)})["x"]


def torch_gradient(function, x):
    tensor = torch_array(x).requires_grad_()
    function(tensor).sum().backward()
    return tensor.grad


def jax_parameter_names(config):
    return list(flatten(jax_impl.models.make_model(config).params))


def torch_parameter_names(config):
    return [name for name, _ in torch_ref.models.make_model(config).named_parameters()]


TWINS = {
    "jax": Twin("jax_impl", jnp.asarray, jax_gradient, jax_parameter_names),
    "torch": Twin("torch_ref", torch_array, torch_gradient, torch_parameter_names),
}


@pytest.fixture(params=TWINS)
def twin(request, x64) -> Twin:
    return TWINS[request.param]
