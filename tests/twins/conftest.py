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

from jax_impl.models import make_model
from jax_impl.tree import flatten
from tests.helpers.frameworks import FRAMEWORKS, in_each
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
    return in_each("input")["torch"].to_tensors({"x": np.array(x)})["x"]


def torch_gradient(function, x):
    tensor = torch_array(x).requires_grad_()
    function(tensor).sum().backward()
    return tensor.grad


def jax_parameter_names(config):
    return list(flatten(make_model(config).params))


def torch_parameter_names(config):
    return [name for name, _ in in_each("models")["torch"].make_model(config).named_parameters()]


TWINS = {
    "jax": Twin("jax_impl", jnp.asarray, jax_gradient, jax_parameter_names),
    "torch": Twin("torch_ref", torch_array, torch_gradient, torch_parameter_names),
}


@pytest.fixture(params=FRAMEWORKS)
def twin(request, x64) -> Twin:
    return TWINS[request.param]
