"""Serial products, and what they are for: a port whose sums are rounded more often than those of torch's BLAS."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from parity.budget import EPS, TOLERANCES, Error, error, judge
from parity.check_configs import subject
from parity.entries import Key
from parity.ledger import Ledger
from parity.reference import make_reference
from parity.serial import SerialProducts
from parity.torch_side import TorchSide
from torch_ref.models import weight_shapes
from twinstep.data import load_data
from twinstep.init import initial_weights
from twinstep.resolve import fill_in

EPS_32 = EPS["float32"]


def one_by_one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b with each number's terms added in their order, in the dtype of a."""
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for k in range(a.shape[1]):
        total = total + a[:, k, None] * b[k]
    return total


def like_terms(tokens: int = 64, width: int = 32, vocab: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The gradient by the logits and the head's weight after one step from zero: absent tokens are as probable."""
    random = np.random.default_rng(0)
    gradient = np.full((tokens, vocab), 1 / (vocab + 3))
    gradient[np.arange(tokens), random.integers(0, vocab, tokens)] -= 1
    common = random.choice((-1.0, 1.0), width)
    weight = 0.004 * np.where(random.random((vocab, width)) < 0.1, -common, common)
    return gradient.astype(np.float32), weight.astype(np.float32)


def verdict(port: np.ndarray, serial: np.ndarray | None):
    """Beside a reference whose product is exact but for its last rounding."""
    a, b = (x.astype(np.float64) for x in like_terms())
    truth = a @ b
    found = error(truth.astype(np.float32), port, truth, serial)
    return judge(found, TOLERANCES["float32"]["gradients"], EPS_32, found.truth)


def test_terms_are_added_in_their_order_forward_and_backward():
    # A half ulp added to 1 is lost each time; 255 of them added to each other first are not.
    falling = torch.tensor([[1.0, *[EPS_32 / 2] * 255]])
    ones, one = torch.ones(256, 1), torch.ones(1, 1, requires_grad=True)
    with SerialProducts():
        assert (falling @ ones).item() == 1
        assert (falling.flip(1) @ ones).item() == 1 + 128 * EPS_32
        assert (falling.expand(3, 1, 256) @ ones.expand(3, 256, 1)).tolist() == [[[1.0]]] * 3
        assert torch.nn.functional.linear(falling, ones.T, torch.ones(1)).item() == 2
        (one @ ones.T).backward(falling)
    assert one.grad.item() == 1


def test_a_port_that_adds_its_terms_one_by_one_is_as_good_as_a_reference_that_does_not():
    serial = one_by_one(*like_terms())
    assert verdict(serial, None).status == "diverges"
    assert verdict(serial, serial) == verdict(serial, serial)._replace(status="agrees", ratio=1.0)


def test_a_port_whose_factors_are_rounded_to_ten_bits_still_diverges():
    a, b = like_terms()
    mantissa, exponent = np.frexp(b)
    rounded = np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(np.float32)
    assert verdict(one_by_one(a, rounded), one_by_one(a, b)).status == "diverges"


def test_the_serial_error_of_one_seed_stands_for_all_and_the_larger_counts():
    known, unknown = Error(0.0, 1.0, 10.0, serial=4.0, serial_truth=10.0), Error(0.0, 1.0, 30.0)
    assert (known + unknown).own == pytest.approx(math.sqrt(16))  # 4 of 10, so 16 of 40
    assert replace(known, serial=0.5).own == 1
    assert unknown.own == 1
    assert (known + unknown).scaled(1 / 40).own == pytest.approx(math.sqrt(16 / 40))


def test_a_small_tensor_has_the_serial_error_of_the_steps_so_far():
    ledger = Ledger("float32")
    x = np.ones(4)
    for step in range(2):
        ledger.enter(Key("gradients", "x", "native"), step, x, x * (1 + 8e-6), x, x * (1 + 4e-6), eps=EPS_32)
    tensor = ledger.judge()[1][0]
    assert tensor.ratio == pytest.approx([2, 2])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_seed_of_a_float32_check_has_serial_products_of_the_same_step(dtype):
    config = subject("linear", dtype, 3, 0)
    data = load_data(config, None)
    config = fill_in(config, data)
    assert make_reference(config, data, "nonzero", False).watched[0].serial.loss is None
    at = make_reference(config, data, "nonzero", True).watched[2]
    if dtype == "float64":
        assert (at.serial.loss, at.serial.gradients) == (None, {})
        return
    pairs = (
        (at.stepped.gradients, at.serial.gradients),
        (at.captured.activations, at.serial.captured.activations),
        (at.captured.gradients, at.serial.captured.gradients),
    )
    for ours, serial in pairs:
        assert list(serial) == list(ours)
        for name, array in ours.items():
            np.testing.assert_allclose(serial[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)
    assert at.serial.loss == pytest.approx(at.stepped.loss, rel=1e-6)
    assert at.serial.grad_norm == pytest.approx(at.stepped.grad_norm, rel=1e-6)
    assert any((at.serial.gradients[name] != array).any() for name, array in at.stepped.gradients.items())


@pytest.mark.slow
def test_a_head_after_its_first_step_is_where_serial_products_err_most():
    config = subject("gpt", "float32", 3, 0)
    data = load_data(config, None)
    config = fill_in(config, data)
    side, truth = TorchSide(config), TorchSide(replace(config, train=replace(config.train, dtype="float64")))
    batches = list(side.batches(data, 0, 2))
    start = side.initial_state(initial_weights(weight_shapes(side.model), 0, "native"))
    state = side.train_step(start, batches[0]).after
    exact = truth.differentiate(state, batches[1]).captured.gradients
    with SerialProducts():
        serial = side.differentiate(state, batches[1]).captured.gradients
    off = {name: error(serial[name], serial[name], exact[name]) for name in ("lm_head", "final_norm")}
    relative = {name: found.own / math.sqrt(found.truth) for name, found in off.items()}
    assert relative["lm_head"] < 1.5 * EPS_32
    assert relative["final_norm"] > 10 * EPS_32
