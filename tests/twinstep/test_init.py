import math

import numpy as np
import pytest

from twinstep.errors import UserError
from twinstep.init import initial_weights

SHAPES = {
    "wte.weight": (300, 64),
    "h.0.attn.c_q.weight": (64, 64),
    "h.0.attn.c_proj.weight": (64, 64),
    "h.0.mlp.c_fc.weight": (256, 64),
    "h.0.mlp.c_proj.weight": (64, 256),
    "lm_head.weight": (300, 64),
}
TABLE = {
    "fc1.weight": (128, 64),
    "norm.weight": (128,),
    "norm.bias": (128,),
    "norm.running_mean": (128,),
    "norm.running_var": (128,),
    "fc2.weight": (10, 128),
    "fc2.bias": (10,),
}


def test_the_same_seed_and_name_give_the_same_array_whatever_stands_beside_it():
    whole, alone = initial_weights(SHAPES, 3), initial_weights({"wte.weight": (300, 64)}, 3)
    np.testing.assert_array_equal(whole["wte.weight"], alone["wte.weight"])
    assert (initial_weights(SHAPES, 4)["wte.weight"] != whole["wte.weight"]).any()
    assert (whole["wte.weight"][:64] != whole["h.0.attn.c_q.weight"]).any()


def test_the_native_start_of_gpt_is_upstreams():
    weights = initial_weights(SHAPES, 0)
    for name in ("lm_head.weight", "h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight"):
        assert not weights[name].any(), name
    assert weights["wte.weight"].std() == pytest.approx(1, rel=0.02)
    assert weights["h.0.attn.c_q.weight"].std() == pytest.approx(1 / math.sqrt(64), rel=0.05)
    # (4 d, d): the square root of out/in is 2, capped at 1.
    assert weights["h.0.mlp.c_fc.weight"].std() == pytest.approx(1 / math.sqrt(64), rel=0.05)


def test_the_start_for_parity_leaves_nothing_at_zero():
    weights = {**initial_weights(SHAPES, 0, "nonzero"), **initial_weights(TABLE, 0, "nonzero")}
    for name, array in weights.items():
        assert array.dtype == np.float64, name
        assert name == "norm.running_mean" or (array != 0).all(), name
    # (d, 4 d): the square root of out/in is 1/2.
    assert weights["h.0.mlp.c_proj.weight"].std() == pytest.approx(0.5 / math.sqrt(256), rel=0.05)


def test_classifiers_start_as_torch_starts_them():
    weights = initial_weights(TABLE, 0)
    assert np.abs(weights["fc1.weight"]).max() == pytest.approx(1 / math.sqrt(64), rel=0.01)
    assert np.abs(weights["fc2.bias"]).max() <= 1 / math.sqrt(128)
    assert (weights["norm.weight"] == 1).all()
    assert (weights["norm.running_var"] == 1).all()
    assert not weights["norm.bias"].any()


def test_a_parameter_without_a_rule_is_refused_by_name():
    with pytest.raises(UserError, match=r"'h\.0\.attn\.gate' matches 0 initialization rules"):
        initial_weights({"h.0.attn.gate": (3,)}, 0)
