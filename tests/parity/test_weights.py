from dataclasses import replace

import numpy as np
import pytest

import jax_impl.models as jax_models
import torch_ref.models as torch_models
from jax_impl.tree import flatten
from parity.own_bridge import jax_to_torch, torch_to_jax
from parity.pair.carrying import by_rules
from parity.rules import Rule, map_names
from parity.weights import carry_to_jax
from twinstep.config import MLPConfig
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS, PRESETS

MLP = replace(DEFAULTS["mlp"], model=MLPConfig(hidden=6, features=4, classes=3))


def state_dict(config) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in torch_models.make_model(config).state_dict().items()}


@pytest.mark.parametrize("config", [PRESETS["parity"], MLP], ids=["gpt", "mlp"])
def test_the_bridge_is_exact_both_ways(config):
    model, arrays = jax_models.make_model(config), state_dict(config)
    back = jax_to_torch(model, *torch_to_jax(model, arrays))
    shared = {name for name in arrays if not name.endswith("num_batches_tracked")}
    assert set(back) == shared
    for name in shared:
        np.testing.assert_array_equal(back[name], arrays[name])


def test_batch_norms_running_statistics_go_to_the_buffers():
    model = jax_models.make_model(MLP)
    params, buffers = torch_to_jax(model, state_dict(MLP))
    assert set(flatten(buffers)) == {"norm.running_mean", "norm.running_var"}
    assert "running_mean" not in params["norm"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a.pop("fc2.bias"), "'fc2.bias' is fed by no torch array"),
        (lambda a: a.update({"fc3.bias": np.zeros(3, np.float32)}), "'fc3.bias'"),
        (lambda a: a.update({"fc2.weight": a["fc2.weight"].T}), "(3, 6); its transpose would fit"),
        (lambda a: a.update({"fc2.weight": a["fc2.weight"].astype(np.float64)}), "'fc2.weight' has dtype float64"),
    ],
    ids=["missing", "left over", "transposed", "wrong dtype"],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_the_name_of_the_key(spoil, words):
    arrays = state_dict(MLP)
    spoil(arrays)
    with pytest.raises(UserError) as error:
        torch_to_jax(jax_models.make_model(MLP), arrays)
    assert words in str(error.value)


def test_a_tree_that_does_not_fit_is_refused_by_the_name_of_the_leaf():
    model = jax_models.make_model(MLP)
    params, buffers = torch_to_jax(model, state_dict(MLP))
    params["fc2"]["bias"] = params["fc2"]["bias"][:2]
    with pytest.raises(UserError, match=r"'fc2\.bias' has shape \(2,\)"):
        jax_to_torch(model, params, buffers)
    del params["fc2"]["bias"]
    with pytest.raises(UserError, match=r"'fc2\.bias'"):
        jax_to_torch(model, params, buffers)


def test_rules_rename_and_transpose_and_their_inverse_undoes_both():
    rules = (
        Rule(r"conv(\d)\.weight", r"Conv_\1.kernel", (2, 3, 1, 0)),
        Rule(r"conv(\d)\.bias", r"Conv_\1.bias"),
        Rule(r"counter", None),
    )
    random = np.random.default_rng(0)
    arrays = {"conv1.weight": random.random((5, 4, 3, 2)), "conv1.bias": random.random(5), "counter": np.zeros(1)}
    like = {"Conv_1.kernel": np.zeros((3, 2, 4, 5)), "Conv_1.bias": np.zeros(5)}
    leaves = carry_to_jax(map_names(rules, arrays, like), arrays, like)
    assert leaves["Conv_1.kernel"][2, 1, 3, 4] == arrays["conv1.weight"][4, 3, 2, 1]
    back = by_rules(rules, arrays, leaves, {name: name for name in arrays}).back(leaves)
    np.testing.assert_array_equal(back["conv1.weight"], arrays["conv1.weight"])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((Rule("a", "x"),), "torch's 'b' matches 0 rules"),
        ((Rule("a", "x"), Rule(".*", "y")), "torch's 'a' matches 2 rules"),
        ((Rule("[ab]", "x"),), "'x' is fed by both 'a' and 'b'"),
        ((Rule("a", "x"), Rule("b", "z")), "'z', which does not exist"),
        ((Rule("a", "x"), Rule("b", None)), "'y' is fed by no torch array"),
    ],
)
def test_a_name_map_with_a_hole_or_an_overlap_is_refused(rules, words):
    with pytest.raises(UserError) as error:
        map_names(rules, ["a", "b"], ["x", "y"])
    assert words in str(error.value)
