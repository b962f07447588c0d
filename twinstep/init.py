"""Initial weights in NumPy, keyed by seed and parameter name: same seed, same start in both frameworks.

Each parameter has a random stream of its own, so adding a layer changes no other layer's start.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from twinstep.errors import UserError

Init = Literal["native", "nonzero"]


class Rule(NamedTuple):
    """How parameters whose full name matches `pattern` start: `native` as upstream, `nonzero` for parity."""

    pattern: str
    native: str
    nonzero: str


# gpt: karpathy/nanochat, nanochat/gpt.py, `init_weights`. With its zero head and projections the first gradients of
# most layers are zero, and comparing them would show nothing: hence `nonzero`.
# The classifiers start as torch.nn.Linear and torch.nn.BatchNorm1d do.
RULES = (
    Rule(r"wte\.weight", "unit_normal", "unit_normal"),
    Rule(r"lm_head\.weight", "zeros", "scaled_normal"),
    Rule(r"h\.\d+\.(attn|mlp)\.c_proj\.weight", "zeros", "scaled_normal"),
    Rule(r"h\.\d+\.attn\.c_[qkv]\.weight", "scaled_normal", "scaled_normal"),
    Rule(r"h\.\d+\.mlp\.c_fc\.weight", "scaled_normal", "scaled_normal"),
    Rule(r"embedding\.weight", "unit_normal", "unit_normal"),
    Rule(r"(linear|fc2)\.(weight|bias)|fc1\.weight", "torch_linear", "torch_linear"),
    Rule(r"norm\.weight", "ones", "near_one"),
    Rule(r"norm\.bias", "zeros", "small_normal"),
    Rule(r"norm\.running_mean", "zeros", "zeros"),
    Rule(r"norm\.running_var", "ones", "ones"),
)


def initial_weights(shapes: Mapping[str, tuple[int, ...]], seed: int, init: Init = "native") -> dict[str, np.ndarray]:
    """Float64 arrays for every name in `shapes` (weights are (out, in), embeddings (vocabulary, channels)).

    Raises UserError if a name matches no rule or more than one.
    """
    return {name: _draw(name, shape, shapes, seed, init) for name, shape in shapes.items()}


def _draw(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], seed: int, init: Init
) -> np.ndarray:
    rules = [rule for rule in RULES if re.fullmatch(rule.pattern, name)]
    if len(rules) != 1:
        raise UserError(f"parameter {name!r} matches {len(rules)} initialization rules; it must match one")
    kind = rules[0].native if init == "native" else rules[0].nonzero
    digest = hashlib.sha256(name.encode()).digest()
    random = np.random.Generator(np.random.Philox([seed, *np.frombuffer(digest[:8], np.uint32)]))
    match kind:
        case "zeros":
            return np.zeros(shape)
        case "ones":
            return np.ones(shape)
        case "unit_normal":
            return random.standard_normal(shape)
        case "small_normal":
            return 0.1 * random.standard_normal(shape)
        case "near_one":
            return 1 + 0.1 * random.standard_normal(shape)
        case "scaled_normal":  # spectral condition, arXiv:2310.17813
            fan_out, fan_in = shape
            return random.standard_normal(shape) * min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
        case "torch_linear":  # torch.nn.Linear.reset_parameters: U(-1/sqrt(in), 1/sqrt(in)), bias included
            fan_in = shapes[name.rsplit(".", 1)[0] + ".weight"][1]
            return random.uniform(-1, 1, shape) / math.sqrt(fan_in)
    raise AssertionError(kind)
