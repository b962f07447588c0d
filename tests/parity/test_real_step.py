"""What the port's own step returns and logs, and what its checkpoint holds, is compared."""

import numpy as np
import pytest

from parity.ledger import Ledger
from parity.real_step import compare_logged, compare_real_step, compare_resumed, shares
from parity.side import Stepped, TrainingState

LABELS = {"w": "matrix", "v": "matrix", "b": "vector"}
BEFORE = TrainingState({"w": np.full((2, 2), 2.0), "v": np.full(4, 1.0), "b": np.zeros(3)}, {}, 4)
KEY = np.array([1, 2], np.uint32)


def a_step(**changed) -> Stepped:
    weights = {"w": np.full((2, 2), 1.5), "v": np.full(4, 1.5), "b": np.full(3, 0.1)}
    moments = {"momentum/w": np.ones((2, 2)), "count/matrix": np.int32(5)}
    norms = {
        "leaf_norm/w": 6.0,
        "leaf_norm/v": 2.0,
        "leaf_norm/b": 0.0,
        "param_norm/matrix": 20**0.5,
        "param_norm/vector": 0.0,
        "update_norm/matrix": 2**0.5,
        "update_norm/vector": 0.03**0.5,
    }
    gradients = {"w": np.full((2, 2), 3.0), "v": np.full(4, -1.0), "b": np.zeros(3)}
    after = TrainingState(weights, moments, 5, KEY)
    return Stepped(np.float64(1), np.float64(2), 0.1, norms, gradients, after)._replace(**changed)


def logged(port: Stepped) -> str | None:
    ledger = Ledger("float64")
    compare_logged(ledger, "nonzero", BEFORE, a_step(), port, a_step().after, LABELS)
    first = ledger.judge()[2]
    return None if first is None else f"{first.stage} {first.tensor}"


def returned(after: TrainingState) -> str | None:
    ledger = Ledger("float64")
    compare_real_step(ledger, "nonzero", a_step().after, a_step(after=after))
    first = ledger.judge()[2]
    return None if first is None else f"{first.stage} {first.tensor}"


def test_what_is_logged_is_a_multiple_of_one_of_the_norm_that_it_is_said_to_be():
    found = shares(BEFORE, a_step(), a_step().after, LABELS)
    assert found == pytest.approx(dict.fromkeys(a_step().norms, 1.0))


@pytest.mark.parametrize(
    ("name", "value", "stage"),
    [
        ("leaf_norm/w", 6.001, "clip"),
        ("leaf_norm/b", 1e-3, "clip"),
        ("param_norm/matrix", 18**0.5, "update"),  # of the parameters after the update
        ("update_norm/vector", 0.17, "update"),
    ],
)
def test_every_logged_norm_is_that_of_its_arrays(name, value, stage):
    assert logged(a_step()) is None
    assert logged(a_step(norms={**a_step().norms, name: value})) == f"{stage} {name}"


def test_a_norm_that_is_not_logged_is_missed():
    norms = a_step().norms
    assert logged(a_step(norms={name: norms[name] for name in norms if name != "leaf_norm/v"})) == "update leaf_norm/v"


def test_only_what_is_orthogonalized_in_bfloat16_may_differ_by_its_roundings():
    after = a_step().after
    moved = after._replace(weights={name: x * (1 + 4e-3) for name, x in after.weights.items()})
    ledger = Ledger("bfloat16")
    compare_real_step(ledger, "nonzero", after, a_step(after=moved), narrow=["w"])
    assert {row.tensor for row in ledger.judge()[1] if row.relative_l2 > row.budget} == {
        "v (real step)",
        "b (real step)",
    }


def test_the_state_after_the_step_is_what_its_parts_give():
    after = a_step().after
    rounded = {**after.weights, "w": after.weights["w"] * (1 + 1e-9)}
    assert returned(after) is None
    assert returned(after._replace(weights=rounded)) == "parameters w (real step)"
    assert returned(after._replace(moments={**after.moments, "momentum/w": np.zeros((2, 2))})) == (
        "parameters momentum/w (real step)"
    )
    assert returned(after._replace(moments={**after.moments, "count/matrix": np.int32(6)})) == (
        "parameters count/matrix (real step)"
    )
    assert returned(after._replace(step=4)) == "parameters step (real step)"
    assert returned(after._replace(key=KEY + 1)) == "parameters key (real step)"


@pytest.mark.parametrize("changed", [np.zeros(3), np.full(3, 1 + 2**-52), np.ones(3, np.float32), None])
def test_a_checkpoint_gives_back_every_field_to_the_bit(changed):
    saved = {"w": np.ones(3), "key": KEY}
    for restored, right in ((saved, True), ({**saved, "w": changed} if changed is not None else {"key": KEY}, False)):
        ledger = Ledger("float32")
        compare_resumed(ledger, "nonzero", 5, saved, restored)
        first = ledger.judge()[2]
        assert (first is None) == right
        assert right or (first.stage, first.step) == ("trajectory", 5)
