"""Equal arrays are told apart, what looks wrong by its names is doubted, and what is missing has its nearest named."""

import ml_dtypes
import numpy as np
import pytest

from parity.sources import find_sources
from tests.parity.test_sources import C, D, F, H, L, found_in, layers, numbers


def names_of(found):
    return {path: source.names for path, source in found.sources.items()}


def test_equal_norms_are_told_apart_by_their_names_and_said_once():
    arrays = {f"h.{i}.ln_{j}.{kind}": np.full(D, j, np.float32) for i in range(11) for j in (1, 2) for kind in "wb"}
    arrays = {name: np.float32(name.endswith("w")) * np.ones_like(array) for name, array in arrays.items()}
    renamed = {"w": "scale", "b": "bias"}
    leaves = {name[:-1].replace("h.", "layers_") + renamed[name[-1]]: array for name, array in arrays.items()}
    found = found_in(arrays, dict(sorted(leaves.items())))
    for path, names in names_of(found).items():
        assert (path.replace("layers_", "h.").replace("scale", "w").replace("bias", "b"),) == names
    assert len(found.doubts) == 2
    assert found.doubts[0].startswith("22 torch arrays hold the same numbers (h.0.ln_1.b, h.0.ln_2.b, h.1.ln_1.b, ...)")
    assert "told apart by their names" in found.doubts[0]


def test_equal_norms_in_a_stack_are_told_apart_too():
    arrays = {f"h.{i}.ln_{j}.weight": np.ones(D, np.float32) for i in range(L) for j in (1, 2)}
    found = found_in(arrays, {f"layers.ln{j}.scale": np.ones((L, D)) for j in (2, 1)})
    for j in (1, 2):
        assert names_of(found)[f"layers.ln{j}.scale"] == tuple(f"h.{i}.ln_{j}.weight" for i in range(L))


def test_equal_norms_whose_numbers_do_not_fit_are_told_apart_by_words_and_order():
    arrays = {f"h.{i + 5}.ln_{j}.weight": np.ones(D, np.float32) for i in range(L) for j in (1, 2)}
    found = found_in(arrays, {f"layers.ln{j}.scale": np.ones((L, D)) for j in (2, 1)})
    for j in (1, 2):
        assert names_of(found)[f"layers.ln{j}.scale"] == tuple(f"h.{i + 5}.ln_{j}.weight" for i in range(L))


def test_equal_norms_of_stages_that_are_stacked_one_by_one():
    arrays = {f"stage.{i}.block.{j}.ln.weight": np.ones(D, np.float32) for i in range(2) for j in range(L)}
    found = found_in(arrays, {f"stage_{i}.ln.scale": np.ones((L, D)) for i in (1, 0)})
    for i in range(2):
        assert names_of(found)[f"stage_{i}.ln.scale"] == tuple(f"stage.{i}.block.{j}.ln.weight" for j in range(L))


def test_equal_arrays_whose_names_say_nothing_are_told_apart_by_order():
    arrays = {name: np.zeros(D, np.float32) for name in ("one", "two", "three")}
    found = found_in(arrays, {name: np.zeros(D) for name in ("a", "b", "c")})
    assert names_of(found) == {"a": ("one",), "b": ("two",), "c": ("three",)}
    assert found.doubts == [
        "3 torch arrays hold the same numbers (one, three, two), told apart by their order in a, b, c"
    ]


def test_zero_biases_follow_their_kernels():
    arrays = {f"{name}.weight": numbers(D, D) for name in ("one", "two", "three")}
    arrays |= {f"{name}.bias": np.zeros(D, np.float32) for name in ("one", "two", "three")}
    leaves = {
        "x.kernel": arrays["three.weight"].T,
        "y.kernel": arrays["one.weight"].T,
        "z.kernel": arrays["two.weight"],
    }
    found = found_in(arrays, leaves | {f"{name}.bias": np.zeros(D) for name in "xyz"})
    assert [names_of(found)[f"{name}.bias"] for name in "xyz"] == [("three.bias",), ("one.bias",), ("two.bias",)]


def test_zero_biases_of_a_fused_matrix_follow_their_kernels_into_its_parts():
    arrays = {"c_attn.weight": numbers(D, 3 * D), "c_attn.bias": np.zeros(3 * D), "c_proj.bias": np.zeros(D)}
    parts = dict(zip("qkv", np.split(arrays["c_attn.weight"], 3, 1), strict=True))
    leaves = {f"{name}.kernel": parts[name] for name in "kqv"} | {f"{name}.bias": np.zeros(D) for name in "kqv"}
    found = found_in(arrays, leaves | {"out.bias": np.zeros(D)})
    for i, name in enumerate("qkv", 1):
        assert found.sources[f"{name}.bias"].describe() == f"part {i} of 3 of c_attn.bias on axis 0"
    assert names_of(found)["out.bias"] == ("c_proj.bias",)


def test_a_twin_with_equal_numbers_is_used_before_one_array_feeds_two_leaves():
    same = numbers(D, F)
    arrays = {"embed.weight": same, "head.weight": same.copy()}
    found = found_in(arrays, {"head": same.T, "table": same})
    assert names_of(found) == {"head": ("head.weight",), "table": ("embed.weight",)}


def test_zeros_that_are_matrices_are_laid_out_by_their_shapes():
    arrays = {"lora_b.weight": np.zeros((D, F), np.float32)}
    found = found_in(arrays, {"lora_b": np.zeros((F, D))})
    assert found.sources["lora_b"].describe() == "lora_b.weight, transposed (1, 0)"


def test_exchanged_names_are_doubted():
    arrays = {f"h.0.{part}_proj.weight": numbers(D, D) for part in "qkv"}
    leaves = {"h_0.query.kernel": arrays["h.0.k_proj.weight"].T, "h_0.key.kernel": arrays["h.0.q_proj.weight"].T}
    found = found_in(arrays, leaves | {"h_0.value.kernel": arrays["h.0.v_proj.weight"].T})
    assert found.doubts == [
        "h_0.query.kernel holds the numbers of h.0.k_proj.weight, "
        "and h_0.key.kernel those of h.0.q_proj.weight: exchanged?"
    ]


def test_exchanged_layers_are_doubted():
    arrays = layers("w", D, F)
    leaves = {f"layers_{i}.kernel": arrays[f"h.{j}.w"].T for i, j in enumerate((1, 0, 2))}
    (doubt,) = found_in(arrays, leaves).doubts
    assert doubt == "layers_0.kernel holds the numbers of h.1.w, and layers_1.kernel those of h.0.w: exchanged?"


def test_a_stack_in_another_order_is_found_and_doubted():
    arrays = layers("w", D, F) | {"other": numbers(D, F)}
    w = [array.T for array in arrays.values()]
    found = found_in(arrays, {"exchanged": np.stack([w[1], w[0], w[2]]), "mixed": np.stack([w[0], w[3], w[2]])})
    assert found.doubts == [
        "exchanged holds h.1.w, h.0.w, h.2.w in this order, not in that of their numbers",
        "mixed is a stack of h.N.w, but for other in it",
    ]


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [3, 0, 2, 1]])
def test_permuted_gates_are_doubted(order):
    arrays = {"lstm.weight_ih": numbers(4 * D, F)}
    leaf = arrays["lstm.weight_ih"].reshape(4, D, F)[order].reshape(4 * D, F)
    found = found_in(arrays, {"w": leaf.T})
    assert found.doubts == ["w holds lstm.weight_ih in another order along an axis: gates or heads permuted?"]


WEIGHT, GAIN = numbers(H * C, D), numbers(F)
CHANGED = WEIGHT.T.copy()
CHANGED[0, :3] += 1
NEAREST = {
    "rows shuffled": (WEIGHT[np.random.default_rng(1).permutation(H * C)], "the same numbers as w in another order"),
    "negated": (-WEIGHT.T, "equal to w but negated"),
    "three numbers changed": (CHANGED, f"nearest w: equal but for 3 of {WEIGHT.size} numbers"),
    "rounded": (WEIGHT.astype(ml_dtypes.bfloat16).astype(np.float32), "nearly w: relative differences up to 3."),
    "one added": (GAIN + 1, "equal to gain plus 1"),
    "scaled": (GAIN * 8, "equal to gain times 8"),
    "something else": (numbers(H * C, D), "nothing like it"),
    "another size": (numbers(7, 3), "nothing like it"),
    "not finite": (np.full(F, np.nan), "it holds numbers that are not finite"),
    "empty": (np.zeros((0, 3)), "it holds no numbers"),
    "complex": (np.ones(3, np.complex64), "no real numbers, but complex64"),
    "text": (np.array(["a"]), "no real numbers, but <U1"),
}


@pytest.mark.parametrize("kind", NEAREST)
def test_what_is_not_found_has_its_nearest_named(kind):
    leaf, text = NEAREST[kind]
    found = find_sources({"w": WEIGHT, "gain": GAIN, "none": np.zeros((0, 3))}, {"leaf": leaf})
    assert found.sources == {}
    assert found.missing["leaf"].startswith(text)
    assert found.unused == ["w", "gain", "none"]


def test_a_wrong_layer_makes_its_stack_missing_and_nothing_else():
    arrays = layers("w", D, F) | {"gain": GAIN}
    leaf = np.stack([array.T for array in arrays.values() if array.ndim == 2])
    leaf[1, 2, 3] += 1
    found = find_sources(arrays, {"w": leaf, "gain": GAIN})
    assert list(found.sources) == ["gain"]
    assert found.missing["w"] == f"nearest h.1.w: equal but for 1 of {D * F} numbers, at 1 on axis 0 of the stack"


def test_a_source_in_words():
    arrays = layers("q.weight", D, F) | {"a": numbers(2, F), "b": numbers(3, F), "c": numbers(4, F)}
    q = [array for name, array in arrays.items() if "q" in name]
    arrays["conv"] = numbers(5, 4, 3, 2)
    conv = found_in(arrays, {"conv": arrays["conv"].transpose(2, 3, 1, 0)}).sources["conv"]
    assert conv.describe() == "conv, transposed (2, 3, 1, 0)"
    found = found_in(arrays, {"q": np.stack([x.T for x in q]), "joined": np.concatenate([arrays[x] for x in "acb"])})
    assert found.sources["q"].describe() == (
        "h.0.q.weight, h.1.q.weight, h.2.q.weight stacked on axis 0, each transposed (1, 0)"
    )
    assert found.sources["joined"].describe() == "a, c, b side by side on axis 0"
