"""Parameters of any kind by name, and outputs of any kind by path."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from parity.pair.inputs import read_inputs
from parity.pair.outputs import axes_between, floating, match_outputs
from parity.pair.trees import read_tree
from twinstep.errors import UserError

A, B = np.arange(3.0), np.ones((2, 2))


@jax.tree_util.register_dataclass
@dataclass
class Block:
    weight: object
    activation: object


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({"a": A, "b": {"c": B}}, ["a", "b.c"]),
        ([A, (B,)], ["0", "1.0"]),
        ({"encoder/~/linear": {"w": A}}, ["encoder.~.linear.w"]),
        (Block(A, jax.nn.relu), ["weight"]),
        ({"key": jax.random.key(0), "a": jnp.asarray(A), "rate": 0.1, "none": None}, ["a"]),
        ({"a": torch.from_numpy(A)}, ["a"]),
    ],
)
def test_a_leafs_name_is_its_path_and_what_is_no_array_stays(tree, names):
    read = read_tree(tree, "params")
    assert list(read.arrays) == names
    built = read.build({name: 2 * x for name, x in read.arrays.items()})
    again = read_tree(built, "params")
    assert all(np.array_equal(again.arrays[name], 2 * x) for name, x in read.arrays.items())
    if isinstance(tree, Block):
        assert built.activation is jax.nn.relu


def test_an_nnx_state_has_the_names_of_its_variables():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert sorted(read_tree(state, "params").arrays) == ["bias", "kernel"]


def test_a_tree_without_arrays_or_with_one_name_twice_is_refused():
    with pytest.raises(UserError, match="params holds no array"):
        read_tree({"a": 1.0}, "params")
    with pytest.raises(UserError, match=r"params has two leaves of the name 'a\.b'"):
        read_tree({"a.b": A, "a": {"b": B}}, "params")


def test_floating_outputs_are_found_by_path():
    Pair = namedtuple("Pair", "x n")
    output = OrderedDict(logits=A, hidden=(A, B), ids=np.arange(3), pair=Pair(A, 2), nothing=None)
    assert list(floating(output)) == ["logits", "hidden.0", "hidden.1", "pair.x"]
    assert list(floating(torch.ones(2))) == [""]


def test_outputs_are_matched_by_path_by_order_or_as_the_first():
    two = {"y": A, "z": B}
    assert match_outputs(two, {"": A}, None) == {"y": ""}
    assert match_outputs(two, {"z": B, "y": A}, None) == {"y": "y", "z": "z"}
    assert match_outputs(two, {"0": A, "1": B}, None) == {"y": "0", "z": "1"}
    with pytest.raises(UserError, match="say in outputs= which is which"):
        match_outputs(two, {"0": A}, None)
    with pytest.raises(UserError, match="the port returns no floating array"):
        match_outputs(two, {}, None)


def test_the_layout_is_the_permutation_that_fits_the_numbers():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    assert axes_between(x, x) == ()
    assert axes_between(x, x.transpose(0, 2, 3, 1)) == (0, 2, 3, 1)
    assert axes_between(x, x.transpose(0, 3, 2, 1)) == (0, 3, 2, 1)
    assert axes_between(x, x.reshape(6, 16)) == ()


def test_inputs_are_arguments_or_keywords_and_masks_may_be_infinite():
    mask = np.where(np.tri(3, dtype=bool), 0, -np.inf)
    read = read_inputs({"x": A, "mask": mask, "flag": True}, "inputs")
    assert [x.shape for x in read.arrays()] == [(3,), (3, 3)]
    assert read.map(lambda x: x + 1).kwargs["flag"] is True
    with pytest.raises(UserError, match=r"inputs\['x'\] is nan at \[1\]"):
        read_inputs({"x": np.array([0, np.nan])}, "inputs")
