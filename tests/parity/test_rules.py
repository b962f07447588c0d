"""Rules for stacked layers, fused matrices and reshapes: what they make of torch's arrays, and what they refuse."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity.pair.carrying import State, by_rules, by_value
from parity.pair.layers import tags_of
from parity.pair.trees import read_tree
from parity.rules import Rule
from parity.weights import carry
from tests.helpers.attention import Attention, LinenAttention
from twinstep.errors import UserError

RANDOM = np.random.default_rng(0)
D, H, C, K = 6, 4, 2, 2


def array(*shape):
    return RANDOM.normal(size=shape)


def carried(rules, arrays, leaves):
    return by_rules(rules, State(arrays, {}, {name: name for name in arrays}), leaves)


LAYERS = {f"layers.{i}.w": array(5, 3) for i in (0, 10, 2)}  # in the order of their numbers, not of their names
IN_ORDER = [LAYERS[f"layers.{i}.w"] for i in (0, 2, 10)]
QKV = array(H * C + 2 * K * C, D)
Q, KEYS, VALUES = QKV[: H * C], QKV[H * C : H * C + K * C], QKV[H * C + K * C :]
BY_HEAD = array(D, H * 3 * C)
HEADS = BY_HEAD.reshape(D, H, 3, C)
FUSED = {f"layers.{i}.{n}": array(C, D) for i in range(2) for n in "qkv"}


def joined(i, axis=0):
    return np.concatenate([FUSED[f"layers.{i}.{n}"].T for n in "qkv"], axis)


CASES = {
    "stacked": ([Rule(r"layers\.(\d+)\.w", "w", stack=0)], LAYERS, {"w": np.stack(IN_ORDER)}),
    "transposed and stacked on the second axis": (
        [Rule(r"layers\.(\d+)\.w", "w", (1, 0), stack=1)],
        LAYERS,
        {"w": np.stack([w.T for w in IN_ORDER], 1)},
    ),
    "fused in torch, with fewer key/value heads": (
        [Rule("qkv", ("q", "k", "v"), (1, 0), split=0)],
        {"qkv": QKV},
        {"q": Q.T, "k": KEYS.T, "v": VALUES.T},
    ),
    "fused in torch, reshaped": (
        [Rule("qkv", ("q", "k", "v"), (1, 0), split=0, reshape=(D, -1, C))],
        {"qkv": QKV},
        {"q": Q.T.reshape(D, H, C), "k": KEYS.T.reshape(D, K, C), "v": VALUES.T.reshape(D, K, C)},
    ),
    "fused in torch by heads": (
        [Rule("qkv", ("q", "k", "v"), split=1, heads=H)],
        {"qkv": BY_HEAD},
        {n: HEADS[:, :, i].reshape(D, H * C) for i, n in enumerate("qkv")},
    ),
    "fused in torch by heads, stacked": (
        [Rule(r"(\d)\.qkv", ("q", "k", "v"), split=1, heads=H, stack=2)],
        {"0.qkv": BY_HEAD, "1.qkv": BY_HEAD**3},
        {n: np.stack([HEADS[:, :, i].reshape(D, H * C) ** f for f in (1, 3)], 2) for i, n in enumerate("qkv")},
    ),
    "fused in the port": (
        [Rule((r"layers\.(.)\.q", r"layers\.(.)\.k", r"layers\.(.)\.v"), r"qkv_\1", (1, 0), split=1)],
        FUSED,
        {f"qkv_{i}": joined(i, 1) for i in range(2)},
    ),
    "fused in the port by heads, stacked last": (
        [Rule((r"layers\.(.)\.q", r"layers\.(.)\.k", r"layers\.(.)\.v"), "qkv", split=0, heads=2, stack=2)],
        FUSED,
        {
            "qkv": np.stack(
                [
                    np.concatenate([FUSED[f"layers.{i}.{n}"][c : c + 1] for c in range(C) for n in "qkv"])
                    for i in (0, 1)
                ],
                2,
            )
        },
    ),
    "reshaped": ([Rule("q", "q", (1, 0), reshape=(D, H, -1))], {"q": Q}, {"q": Q.T.reshape(D, H, C)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rule_makes_the_leaves_and_takes_gradients_back_to_where_they_belong(case):
    rules, arrays, leaves = CASES[case]
    found = carried(rules, arrays, leaves)
    for name, leaf in found.leaves(arrays, leaves).items():
        np.testing.assert_array_equal(leaf, leaves[name], err_msg=name)
    for name, back in found.back(leaves).items():
        np.testing.assert_array_equal(back, arrays[name], err_msg=name)
    for name, leaf in carry(arrays, leaves, rules).items():
        np.testing.assert_array_equal(leaf, leaves[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_a_rule_says_what_the_numbers_show(case):
    rules, arrays, leaves = CASES[case]
    shown, said = by_value(arrays, leaves), carried(rules, arrays, leaves)
    other = {name: array(*x.shape) for name, x in arrays.items()}
    for name in leaves:
        np.testing.assert_array_equal(said.leaf(name, other), shown.leaf(name, other), err_msg=name)


L3 = {f"layers.{i}.w": array(5, 3) for i in range(3)}
BAD = {
    "a missing layer": (
        lambda: carried([Rule(r"layers\.(\d)\.w", "w", stack=0)], L3, {"w": array(4, 5, 3)}),
        r"'w' has 4 layers on axis 0, and its rule finds 3: layers\.0\.w, layers\.1\.w, layers\.2\.w",
    ),
    "layers of two shapes": (
        lambda: carried([Rule(r"(\d)\.w", "w", stack=0)], {"0.w": array(2), "1.w": array(3)}, {"w": array(2, 2)}),
        r"'w' stacks arrays of shapes \(2,\) and \(3,\): 0\.w, 1\.w",
    ),
    "no number to order by": (
        lambda: carried([Rule(r"layers\.\d\.w", "w", stack=0)], L3, {"w": array(3, 5, 3)}),
        r"fed by both 'layers\.0\.w' and 'layers\.1\.w': at one place of the stack; put the layer's number",
    ),
    "a shape that does not split": (
        lambda: carried([Rule("a", ("q", "k"), split=0)], {"a": array(6, 3)}, {"q": array(3, 3), "k": array(2, 3)}),
        r"'a' has shape \(6, 3\), which does not split on axis 0 into q \(3, 3\), k \(2, 3\)",
    ),
    "heads that do not split": (
        lambda: carried(
            [Rule("a", ("q", "k"), split=0, heads=4)], {"a": array(6, 3)}, {"q": array(3, 3), "k": array(3, 3)}
        ),
        r"does not split on axis 0 in 4 heads into q",
    ),
    "a shape that does not reshape": (
        lambda: carried([Rule("a", "a", reshape=(4, -1))], {"a": array(6, 3)}, {"a": array(4, 4)}),
        r"'a' has shape \(6, 3\) after its rule's axes, which does not reshape to \(4, -1\)",
    ),
    "another shape than the leaf's": (
        lambda: carried([Rule("a", "a", reshape=(9, -1))], {"a": array(6, 3)}, {"a": array(2, 9)}),
        r"'a' has shape \(2, 9\), and its rule makes \(9, 2\) of a",
    ),
    "two rules for one leaf": (
        lambda: carried(
            [Rule("a", "x", reshape=(2,)), Rule("b", "x")], {"a": array(2), "b": array(2)}, {"x": array(2)}
        ),
        r"'x' is fed by both 'a' and 'b': by two rules",
    ),
    "a leaf that is named twice": (
        lambda: carried([Rule("a", ("q", "q"), split=0)], {"a": array(6)}, {"q": array(3)}),
        r"'q' is fed by both 'a' and 'a'",
    ),
    "a stack of layers' tags": (
        lambda: tags_of([Rule(r"layers\.(\d)", "layers", stack=0)], "layers.0"),
        r"layers= has a rule for .* with stack, split or reshape",
    ),
    "a part that is missing": (
        lambda: carried([Rule(("q", "k"), "qk", split=0)], {"q": array(2)}, {"qk": array(4)}),
        r"'qk' is made of 2 arrays side by side, and its rule finds 1: q",
    ),
    "parts that do not fit": (
        lambda: carried([Rule(("q", "k"), "qk", split=0)], {"q": array(2, 3), "k": array(2, 4)}, {"qk": array(4, 3)}),
        r"'qk' cannot hold these side by side on axis 0: q \(2, 3\), k \(2, 4\)",
    ),
    "an axis that is not there": (
        lambda: carried([Rule("a", ("q", "k"), split=2)], {"a": array(6, 3)}, {"q": array(3, 3), "k": array(3, 3)}),
        r"'a' has 2 axes, and its rule names axis 2; count them from 0",
    ),
    "names without an axis": (
        lambda: Rule("a", ("q", "k")),
        r"has several names on a side; say on which axis they lie: split=",
    ),
    "an axis without names": (lambda: Rule("a", "q", split=0), r"has split=; give it the names of the parts, a tuple"),
    "names on both sides": (lambda: Rule(("a", "b"), ("q", "k"), split=0), r"several names on both sides"),
    "heads without an axis": (lambda: Rule("a", "q", heads=2), r"has heads=2; it goes with split="),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_rule_that_cannot_be_is_refused_in_one_line(bad):
    make, message = BAD[bad]
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


PROJECTIONS = ("query", "key", "value")
ATTENTION_RULES = [
    Rule(r"att\.in_proj_weight", tuple(f"att.{n}.kernel" for n in PROJECTIONS), (1, 0), split=0, reshape=(8, 2, 4)),
    Rule(r"att\.in_proj_bias", tuple(f"att.{n}.bias" for n in PROJECTIONS), split=0, reshape=(2, 4)),
    Rule(r"att\.out_proj\.weight", "att.out.kernel", (1, 0), reshape=(2, 4, 8)),
    Rule(r"att\.out_proj\.bias", "att.out.bias"),
]


def test_gradients_travel_through_rules_for_a_fused_projection():
    torch.manual_seed(0)
    module = Attention()
    nn.init.normal_(module.att.in_proj_bias)
    arrays = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    shape = {"kernel": np.zeros((8, 2, 4), np.float32), "bias": np.zeros((2, 4), np.float32)}
    out = {"kernel": np.zeros((2, 4, 8), np.float32), "bias": np.zeros(8, np.float32)}
    params = carry(arrays, {"att": {**dict.fromkeys(PROJECTIONS, shape), "out": out}}, ATTENTION_RULES)
    x = RANDOM.normal(size=(2, 5, 8)).astype(np.float32)
    result = parity.compare(module, parity.linen_function(LinenAttention()), params, [x], weights=ATTENTION_RULES)
    assert result.verdict == "agrees", result.sentence
    assert {t.tensor for t in result.tensors if t.stage == "gradients"} >= {"att.in_proj_weight", "att.in_proj_bias"}


@pytest.mark.slow
def test_rules_for_a_stacked_llama_say_what_its_numbers_show():
    pytest.importorskip("transformers")
    llama = importlib.import_module("tests.parity.ports.llama")
    module, _ = llama.torch_side()
    per_head = llama.WIDTH // llama.HEADS
    layer = r"model\.layers\.(\d+)\."
    rules = [
        Rule(r"model\.embed_tokens\.weight", "embedding"),
        Rule(r"lm_head\.weight", None),
        Rule(r"model\.norm\.weight", "norm"),
        Rule(layer + r"input_layernorm\.weight", "layers.attention_norm", stack=0),
        Rule(layer + r"post_attention_layernorm\.weight", "layers.mlp_norm", stack=0),
        Rule(layer + r"self_attn\.([qkv])_proj\.weight", r"layers.\2", (1, 0), 0, reshape=(llama.WIDTH, -1, per_head)),
        Rule(layer + r"self_attn\.o_proj\.weight", "layers.o", (1, 0), 0, reshape=(-1, per_head, llama.WIDTH)),
        Rule(layer + r"mlp\.(\w+)_proj\.weight", r"layers.\2", (1, 0), stack=0),
    ]
    arrays = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    leaves = read_tree(llama.jax_side(module.state_dict())[1], "params").arrays
    said, shown = carried(rules, arrays, leaves), by_value(arrays, leaves)
    other = {name: array(*x.shape) for name, x in arrays.items()}
    other["lm_head.weight"] = other["model.embed_tokens.weight"]
    assert set(said.sources) == set(shown.sources) == set(leaves)
    for name in leaves:
        np.testing.assert_array_equal(said.leaf(name, arrays), leaves[name], err_msg=name)
        np.testing.assert_array_equal(said.leaf(name, other), shown.leaf(name, other), err_msg=name)
