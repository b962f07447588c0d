"""Attention, plain, block by block and after a cache, against the equation written out; what blocks never compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl import parallel
from jax_impl.models import blockwise, cudnn
from jax_impl.models.attention import causal_attention
from jax_impl.models.blockwise import blockwise_attention
from jax_impl.models.cache import BlockCache, cached_attention
from jax_impl.models.gpt import apply_rotary, rotary_table
from tests.helpers.jaxprs import inner_equations
from twinstep.config import GPTConfig

RANDOM = np.random.default_rng(0)


def attention_by_heads(q_BTHC, k_BSKC, v_BSKC, start=0):
    """Every score at once, one head at a time in NumPy's or JAX's own float type."""
    groups = q_BTHC.shape[2] // k_BSKC.shape[2]
    k_BSHC, v_BSHC = (jnp.repeat(x, groups, axis=2) for x in (k_BSKC, v_BSKC))
    scores_BHTS = jnp.einsum("bthc,bshc->bhts", q_BTHC, k_BSHC) / np.sqrt(q_BTHC.shape[-1])
    t, s = np.ogrid[: q_BTHC.shape[1], : k_BSKC.shape[1]]
    weights_BHTS = jax.nn.softmax(jnp.where(s <= start + t, scores_BHTS, -np.inf), axis=-1)
    return jnp.einsum("bhts,bshc->bthc", weights_BHTS, v_BSHC)


def random_qkv(B=2, T=5, H=4, K=2, C=8, dtype=np.float64):
    return [RANDOM.standard_normal((B, T, heads, C)).astype(dtype) for heads in (H, K, K)]


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of four queries, so that short sequences have several."""
    monkeypatch.setattr(blockwise, "SHORTEST_BLOCK", 4)


# One block, several, a last one that is shorter, and so many tokens that blocks grow beyond the shortest.
@pytest.mark.parametrize("attention", [causal_attention, blockwise_attention])
@pytest.mark.parametrize(("length", "heads"), [(1, (2, 1)), (4, (2, 2)), (5, (6, 2)), (31, (3, 3)), (37, (4, 2))])
def test_attention_and_its_gradients_are_the_equations(x64, short_blocks, attention, length, heads):
    qkv = random_qkv(T=length, H=heads[0], K=heads[1])
    weight = RANDOM.standard_normal(qkv[0].shape)  # a cotangent of its own for every number

    @jax.jit
    def value_and_gradients(qkv):
        y, back = jax.vjp(attention, *qkv)
        expected_y, expected_back = jax.vjp(attention_by_heads, *qkv)
        return (y, *back(weight)), (expected_y, *expected_back(weight))

    for name, found, expected in zip(("y", "dq", "dk", "dv"), *value_and_gradients(qkv), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13, err_msg=name)


def test_blocks_cover_each_query_once_and_are_at_most_eight():
    for length in (*range(1, 300, 7), 1024, 1025, 4096, 5000):
        blocks = blockwise._blocks(length)
        assert [t for first, last in blocks for t in range(first, last)] == list(range(length))
        assert len(blocks) <= blockwise.MOST_BLOCKS


@pytest.mark.parametrize("attention", [causal_attention, blockwise_attention])
def test_no_query_is_moved_by_a_later_key(short_blocks, attention):
    q, k, v = random_qkv(T=11, dtype=np.float32)
    attend = jax.jit(attention)
    before = attend(q, k, v)
    later = (np.arange(11) > 6)[None, :, None, None]
    after = attend(q, np.where(later, 7.0, k), np.where(later, -7.0, v))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.asarray(before[:, 7:]) != np.asarray(after[:, 7:])).all()


@pytest.mark.parametrize("attention", [causal_attention, blockwise_attention])
def test_scores_far_beyond_the_range_of_exp_stay_finite(short_blocks, attention):
    q, k, v = random_qkv(T=9, dtype=np.float32)
    value, grads = jax.jit(jax.value_and_grad(lambda q: attention(q, k, v).sum()))(1e4 * q)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("attention", [causal_attention, blockwise_attention])
@pytest.mark.parametrize(("dtype", "eps"), [("float32", 2**-24), ("bfloat16", 2**-9)])
def test_low_precision_errs_by_a_few_roundings(x64, short_blocks, attention, dtype, eps):
    """Scores, softmax and sums are float32 or wider: in bfloat16 only operands and results are rounded."""
    qkv = [jnp.asarray(x, dtype) for x in random_qkv(T=37, C=32)]
    truth = attention_by_heads(*(x.astype(np.float64) for x in qkv))
    found = jax.jit(attention)(*qkv)
    assert found.dtype == jnp.dtype(dtype)
    error = np.linalg.norm(found.astype(np.float64) - truth) / np.linalg.norm(truth)
    assert error < 3 * eps


def test_plain_attention_after_a_cache_sees_the_keys_up_to_its_own(x64):
    q, k, v = random_qkv(T=12)
    found = jax.jit(causal_attention)(q[:, 5:8], k, v, jnp.int32(5))
    np.testing.assert_allclose(found, attention_by_heads(q[:, 5:8], k, v, 5), rtol=1e-12, atol=1e-14)


def test_after_a_cache_the_mask_starts_where_the_cache_ends(x64):
    """Three tokens after five; the cache's rest holds numbers that must not be seen."""
    q, k, v = random_qkv(T=12)
    B, S, K, C = k.shape
    k_MCS = k.transpose(0, 2, 3, 1).reshape(B * K, C, S)
    v_MSC = v.transpose(0, 2, 1, 3).reshape(B * K, S, C)
    new_k, new_v = random_qkv(T=3)[1:]

    @jax.jit
    def attend(q, k, v, cache):
        return cached_attention(q, k, v, cache, jnp.int32(5)), cache

    found, after = attend(q[:, 5:8], new_k, new_v, BlockCache(jnp.asarray(k_MCS), jnp.asarray(v_MSC)))
    k[:, 5:8], v[:, 5:8] = new_k, new_v
    np.testing.assert_allclose(found, attention_by_heads(q[:, 5:8], k, v, 5), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(after.keys.reshape(B, K, C, S).transpose(0, 3, 1, 2), k)
    np.testing.assert_array_equal(after.values.reshape(B, K, S, C).transpose(0, 2, 1, 3), v)


def test_scores_exist_for_one_block_at_a_time():
    """The largest array of forward and backward is an eighth of all scores; plain attention computes all of them."""
    T, H, C = 2048, 2, 4
    shapes = [jax.ShapeDtypeStruct((1, T, H, C), jnp.float32)] * 3

    def largest(function):
        jaxpr = jax.make_jaxpr(jax.grad(lambda *qkv: function(*qkv).sum(), argnums=(0, 1, 2)))(*shapes)
        return max(max(v.aval.size for v in eqn.outvars) for eqn in inner_equations(jaxpr.jaxpr))

    assert largest(blockwise_attention) == H * T * T // blockwise.MOST_BLOCKS
    assert largest(causal_attention) == H * T * T


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_of_a_rotation_is_the_rotation_back(x64, dtype):
    """<R x, y> = <x, R^T y>, and R^T R = 1."""
    cos, sin = (jnp.asarray(t) for t in rotary_table(GPTConfig(head_dim=8, d_model=16, rotary_dtype="float64"), 16))
    x, y = (jnp.asarray(RANDOM.standard_normal((2, 16, 3, 8)), dtype) for _ in range(2))
    rotated, back = jax.vjp(lambda x: apply_rotary(x, cos, sin), x)
    (y_back,) = back(y)
    assert y_back.dtype == jnp.dtype(dtype)
    tolerance = 50 * float(jnp.finfo(dtype).eps)
    assert float(jnp.vdot(rotated, y)) == pytest.approx(float(jnp.vdot(x, y_back)), rel=tolerance)
    np.testing.assert_allclose(back(rotated)[0], x, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("T", [64, 300, 301])
def test_on_a_gpu_the_kernel_is_as_exact_as_the_blocks(x64, dtype, T):
    assert cudnn.available()
    q, k, v = (np.asarray(jnp.asarray(x, dtype), np.float64) for x in random_qkv(T=T, C=64))
    weights = np.random.default_rng(1).standard_normal(q.shape)

    def results(attention, dtype):
        total = lambda *qkv: jnp.sum(attention(*qkv).astype(jnp.float64) * weights)
        value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*(jnp.asarray(x, dtype) for x in (q, k, v)))
        return [np.asarray(x, np.float64) for x in (value, *gradients)]

    true = results(causal_attention, jnp.float64)
    ours, kernels = results(blockwise_attention, dtype), results(cudnn.cudnn_attention, dtype)
    for exact, block, kernel in zip(true[1:], ours[1:], kernels[1:], strict=True):
        assert np.linalg.norm(kernel - exact) <= 1.5 * np.linalg.norm(block - exact)


def test_without_the_kernel_attention_for_gpus_is_the_blocks(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parallel.attention() is cudnn.cudnn_attention
    kernel = lambda q, k, v: jnp.full_like(q, 7.0)
    monkeypatch.setattr(cudnn, "kernel", kernel)
    for available, dtype, T, C, by_kernel in (
        (False, jnp.bfloat16, 6, 64, False),
        (True, jnp.float32, 6, 64, False),
        (True, jnp.bfloat16, 6, 36, False),
        (True, jnp.bfloat16, 6, 136, False),
        (True, jnp.bfloat16, 5, 64, False),
        (True, jnp.bfloat16, 6, 64, True),
        (True, jnp.float16, 6, 128, True),
    ):
        monkeypatch.setattr(cudnn, "available", lambda found=available: found)
        q, k, v = (jnp.asarray(x, dtype) for x in random_qkv(T=T, C=C))
        expected = kernel(q, k, v) if by_kernel else blockwise_attention(q, k, v)
        np.testing.assert_array_equal(cudnn.cudnn_attention(q, k, v), expected)


def test_the_kernel_is_not_taken_where_it_does_not_compile():
    if jax.default_backend() != "gpu":
        assert not cudnn.available()
