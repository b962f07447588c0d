"""Which torch arrays feed which leaf is found by their numbers, whatever the layout."""

import ml_dtypes
import numpy as np
import pytest

from parity.sources import Found, Piece, Source, find_sources

L, D, F, H, K, C, E = 3, 12, 20, 4, 2, 6, 5
RANDOM = np.random.default_rng(0)


def numbers(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def layers(name, *shape):
    return {f"h.{i}.{name}": numbers(*shape) for i in range(L)}


def check(found: Found, arrays: dict, leaves: dict) -> None:
    """Every leaf is found, is what its source carries, and the source's transpose is its transpose."""
    assert found.missing == {}
    assert sorted(found.sources) == sorted(leaves)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    for path, leaf in leaves.items():
        source = found.sources[path]
        assert source.shape == leaf.shape
        np.testing.assert_array_equal(source.carry(arrays).astype(leaf.dtype), leaf)
        gradient = RANDOM.standard_normal(leaf.shape)
        pulled = source.pull(gradient, shapes)
        assert {name: array.shape for name, array in pulled.items()} == {name: shapes[name] for name in source.names}
        ahead = np.vdot(source.carry(wide), gradient)
        back = sum(np.vdot(wide[name], array) for name, array in pulled.items())
        np.testing.assert_allclose(ahead, back, rtol=1e-12)


def found_in(arrays: dict, leaves: dict) -> Found:
    found = find_sources(arrays, leaves)
    check(found, arrays, leaves)
    return found


MATRIX, HEADS, KERNEL = numbers(D, F), numbers(H * C, D), numbers(5, 4, 3, 2)

LAYOUTS = {
    "as it is": (MATRIX, MATRIX),
    "a scalar": (np.float32(3.5).reshape(()), np.full((), 3.5, np.float32)),
    "transposed": (MATRIX, MATRIX.T),
    "square": (HEADS[:D], HEADS[:D].T),
    "kernel OIHW to HWIO": (KERNEL, KERNEL.transpose(2, 3, 1, 0)),
    "kernel flipped": (KERNEL, KERNEL[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)),
    "zeros of both signs": (np.array([0.0, 0.0, 1.0, 2.0]), np.array([-0.0, 0.0, 1.0, 2.0])),
    "flattened": (KERNEL, KERNEL.transpose(2, 3, 1, 0).reshape(-1)),
    "squeezed": (KERNEL.reshape(5, 1, 24, 1), KERNEL.reshape(5, 24).T),
    "(H C, D) to (D, H, C)": (HEADS, HEADS.reshape(H, C, D).transpose(2, 0, 1)),
    "(H C, D) to (H, D, C)": (HEADS, HEADS.reshape(H, C, D).swapaxes(1, 2)),
    "(D, H, C) to (H C, D)": (HEADS.T.reshape(D, H, C), HEADS),
    "heads exchanged with channels": (HEADS, HEADS.reshape(H, C, D).swapaxes(0, 1).reshape(-1, D)),
    "rotary halves interleaved": (HEADS, HEADS.reshape(H, 2, C // 2, D).swapaxes(1, 2).reshape(-1, D).T),
}
REORDERED = ("heads exchanged with channels", "rotary halves interleaved")  # in the array's own shape: said


@pytest.mark.parametrize("kind", LAYOUTS)
def test_one_array_in_another_layout(kind):
    array, leaf = LAYOUTS[kind]
    found = found_in({"decoy": numbers(*array.shape), "a": array}, {"b": leaf})
    assert found.sources["b"].names == ("a",)
    assert found.sources["b"].copies
    assert found.unused == ["decoy"]
    assert bool(found.doubts) == (kind in REORDERED)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_leaf_of_a_narrower_type_holds_the_array_rounded(dtype):
    arrays = {"w": RANDOM.standard_normal((H * C, D)), "bias": RANDOM.standard_normal(F)}
    leaves = {"w": arrays["w"].T.reshape(D, H, C).astype(dtype), "bias": arrays["bias"].astype(dtype)}
    found_in(arrays, leaves)


def test_a_leaf_of_a_wider_type_and_whole_numbers():
    arrays = {"w": numbers(D, F).astype(ml_dtypes.bfloat16), "positions": np.arange(D).reshape(1, D)}
    found_in(arrays, {"w": arrays["w"].T.astype(np.float32), "positions": np.arange(D, dtype=np.int32)})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_stacked_on_any_axis_in_the_order_of_their_numbers(axis):
    arrays = {f"h.{i}.w": numbers(D, F) for i in (10, 2, 1)}
    leaf = np.stack([arrays[f"h.{i}.w"].T for i in (1, 2, 10)], axis)
    found = found_in(arrays, {"w": leaf})
    assert found.sources["w"].names == ("h.1.w", "h.2.w", "h.10.w")
    assert found.doubts == []


def test_a_scan_over_layers_whose_kernels_hold_heads():
    arrays = layers("q.weight", H * C, D)
    leaf = np.stack([array.reshape(H, C, D).transpose(2, 0, 1) for array in arrays.values()])
    found_in(arrays, {"layers.q.kernel": leaf})


def test_a_stack_of_stacks():
    arrays = {f"h.{i}.experts.{e}.w": numbers(F, D) for i in range(L) for e in range(E)}
    leaf = np.stack([np.stack([arrays[f"h.{i}.experts.{e}.w"].T for e in range(E)]) for i in range(L)])
    found = found_in(arrays, {"experts": leaf, "experts_first": leaf.swapaxes(0, 1)})
    assert found.doubts == []


def test_experts_that_torch_stacked_already():
    arrays = layers("experts.w", E, F, D)
    leaf = np.stack([array.transpose(0, 2, 1) for array in arrays.values()])
    alone = {f"first.{e}": arrays["h.0.experts.w"][e].T for e in range(E)}
    found_in(arrays, {"experts": leaf} | alone)


def test_fused_in_jax():
    arrays = layers("q.weight", H * C, D) | layers("k.weight", K * C, D) | layers("v.weight", K * C, D)
    fused = [np.concatenate([arrays[f"h.{i}.{part}.weight"].T for part in "qkv"], 1) for i in range(L)]
    found_in(arrays, {"qkv.0": fused[0], "qkv.1": fused[1], "qkv.2": fused[2]})
    found = found_in(arrays, {"qkv": np.stack(fused)})
    assert found.sources["qkv"].names[:4] == ("h.0.q.weight", "h.0.k.weight", "h.0.v.weight", "h.1.q.weight")
    assert found.doubts == []


def test_fused_in_jax_head_by_head():
    arrays = {part: numbers(H * C, D) for part in "qkv"}
    leaf = np.stack([arrays[part].reshape(H, C, D) for part in "qkv"], 1)
    found_in(arrays, {"qkv": leaf.reshape(-1, D).T, "by_head": leaf})


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_fused_in_torch(count, axis):
    arrays = {"wide": numbers(*((count * D, F) if axis == 0 else (F, count * D))), "w": numbers(D, F)}
    parts = np.split(arrays["wide"], count, axis)
    found = found_in(arrays, {f"part{i}": part.T for i, part in enumerate(parts)})
    assert found.sources["part1"].describe() == f"part 2 of {count} of wide on axis {axis}, transposed (1, 0)"
    assert found.unused == ["w"]


def test_fused_in_torch_with_fewer_heads_of_keys():
    arrays = {"qkv.weight": numbers((H + 2 * K) * C, D)}
    q, k, v = np.split(arrays["qkv.weight"], [H * C, (H + K) * C])
    found_in(arrays, {"q": q.T.reshape(D, H, C), "k": k.T.reshape(D, K, C), "v": v.T})


def test_fused_in_torch_head_by_head_and_stacked_in_jax():
    arrays = layers("qkv.weight", H * 3 * C, D)
    by_head = np.stack(list(arrays.values())).reshape(L, H, 3, C, D)
    leaves = {name: by_head[:, :, i].transpose(0, 3, 1, 2) for i, name in enumerate("qkv")}
    found_in(arrays, leaves)
    found = found_in(arrays, {name: leaf[0].reshape(D, H * C) for name, leaf in leaves.items()})
    assert [len(source.pieces) for source in found.sources.values()] == [1, 1, 1]


def test_a_part_that_starts_anywhere():
    arrays = {"positions.weight": numbers(D + 2, F)}
    found = found_in(arrays, {"positions": arrays["positions.weight"][2:]})
    assert found.sources["positions"].describe() == f"2:{D + 2} of positions.weight on axis 0"


def test_a_sum_of_two_biases_is_no_copy():
    arrays = {"lstm.bias_ih": numbers(4 * D), "lstm.bias_hh": numbers(4 * D), "other": numbers(4 * D)}
    found = found_in(arrays, {"lstm.b": arrays["lstm.bias_ih"] + arrays["lstm.bias_hh"]})
    source = found.sources["lstm.b"]
    assert source.describe() == "lstm.bias_ih + lstm.bias_hh"
    assert source.names == ("lstm.bias_ih", "lstm.bias_hh")
    assert not source.copies
    for pulled in source.pull(np.arange(4.0 * D), {name: array.shape for name, array in arrays.items()}).values():
        np.testing.assert_array_equal(pulled, np.arange(4.0 * D))


def test_an_lstm_with_its_gates_in_another_order():
    arrays = {"weight_ih": numbers(4 * D, F), "weight_hh": numbers(4 * D, D)}
    arrays |= {"bias_ih": numbers(4 * D), "bias_hh": numbers(4 * D)}

    def gates(array, order):
        return array.reshape(4, D, *array.shape[1:])[order].reshape(array.shape)

    for order in ([0, 2, 1, 3], [0, 1, 3, 2], [3, 0, 2, 1]):
        w = np.concatenate([gates(arrays["weight_ih"], order).T, gates(arrays["weight_hh"], order).T])
        found_in(arrays, {"w_ih": gates(arrays["weight_ih"], order), "w": w})
    found_in(arrays, {"b": gates(arrays["bias_ih"] + arrays["bias_hh"], [0, 2, 1, 3])})


def test_an_untied_leaf_has_the_same_source_as_its_twin():
    arrays = {"embed.weight": numbers(F, D)}
    found = found_in(arrays, {"embed": arrays["embed.weight"], "head": arrays["embed.weight"].T})
    assert found.unused == []


def test_many_numbers():
    arrays = {f"h.{i}.w": numbers(1024, 1024) for i in range(10)} | {"embed": numbers(10240, 1024)}
    leaves = {"w": np.stack([arrays[f"h.{i}.w"].T for i in range(10)]), "embed": arrays["embed"]}
    found = find_sources(arrays, leaves)
    assert found.missing == {}
    assert found.sources["w"].names == tuple(f"h.{i}.w" for i in range(10))
    assert found.sources["embed"].names == ("embed",)


def test_a_source_by_hand():
    """Rows 1 and 2 of an array, transposed, in the last two columns of a leaf."""
    piece = Piece("a", (4, 3), (slice(1, 3), slice(None)), (2, 3), (1, 0), (3, 5), (slice(None), slice(3, 5)))
    source = Source((3, 5), (piece,))
    array = np.arange(12.0).reshape(4, 3)
    expected = np.zeros((3, 5))
    expected[:, 3:] = array[1:3].T
    np.testing.assert_array_equal(source.carry({"a": array}), expected)
    back = source.pull(np.arange(15.0).reshape(3, 5), {"a": (4, 3)})["a"]
    np.testing.assert_array_equal(back, [[0, 0, 0], [3, 8, 13], [4, 9, 14], [0, 0, 0]])
    assert source.carry({"a": array.astype(ml_dtypes.bfloat16)}).dtype == ml_dtypes.bfloat16
