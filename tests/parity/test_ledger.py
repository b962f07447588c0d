import numpy as np

from parity.budget import Tolerance
from parity.entries import Key
from parity.ledger import Ledger
from parity.result import STAGES

ONES = np.ones(4)


def enter(ledger: Ledger, stage: str, tensor: str, step: int = 0, init: str = "nonzero", off: float = 0.0) -> None:
    ledger.enter(Key(stage, tensor, init), step, ONES, ONES + off)


def test_the_first_divergence_is_by_stage_then_start_then_step_then_place():
    ledger = Ledger("float64")
    enter(ledger, "loss", "loss", step=0, off=1)
    enter(ledger, "activations", "early", step=2, off=1)
    enter(ledger, "activations", "late", step=1, off=1)
    enter(ledger, "activations", "native", step=0, init="native", off=1)
    _, _, first = ledger.judge()
    assert (first.stage, first.tensor, first.step) == ("activations", "late", 1)


def test_within_a_step_the_first_in_the_execution_is_blamed():
    ledger = Ledger("float64")
    for name in ("z", "a"):
        enter(ledger, "activations", name, off=1)
    assert ledger.judge()[2].tensor == "z"


def test_all_agree_where_nothing_differs():
    ledger = Ledger("float64")
    for stage in STAGES:
        enter(ledger, stage, "x")
    stages, tensors, first = ledger.judge()
    assert first is None
    assert all(stage.verdict == "agrees" for stage in stages.values())
    assert len(tensors) == len(STAGES)


def test_a_stage_in_which_nothing_could_fail_is_unchecked():
    ledger = Ledger("float64")
    ledger.enter(Key("gradients", "x", "nonzero"), 0, np.zeros(3), np.zeros(3))
    stage = ledger.judge()[0]["gradients"]
    assert (stage.verdict, stage.compared, stage.unchecked) == ("unchecked", 0, 1)


def test_noise_is_judged_beside_the_largest_tensor_of_its_unit():
    ledger = Ledger("float64")
    ledger.enter(Key("gradients", "large", "nonzero", "leaf"), 0, 1e3 * ONES, 1e3 * ONES)
    ledger.enter(Key("gradients", "noise", "nonzero", "leaf"), 0, 1e-14 * ONES, -1e-14 * ONES)
    ledger.enter(Key("gradients", "other", "nonzero", "moment"), 0, 1e-14 * ONES, 1e-14 * ONES)
    status = {t.tensor: t.status for t in ledger.judge()[1]}
    assert status == {"large": ["agrees"], "noise": ["unchecked"], "other": ["agrees"]}


def test_another_shape_another_type_and_a_missing_name_diverge_with_a_note():
    ledger = Ledger("float64")
    ledger.enter(Key("activations", "shape", "nonzero"), 0, ONES, np.ones(5))
    ledger.enter(Key("activations", "type", "nonzero"), 0, ONES, ONES.astype(np.float32))
    assert ledger.names("activations", "nonzero", 0, {"a": 1, "b": 1}, {"b": 1, "c": 1}) == ["b"]
    notes = {t.tensor: t.note for t in ledger.judge()[1]}
    assert notes["shape"] == "shape (4,) in torch, (5,) in JAX"
    assert notes["type"] == "dtype float64 in torch, float32 in JAX"
    assert notes["a"] == "not there in JAX"
    assert notes["c"] == "not there in torch"


def test_seeds_are_pooled_before_the_ratio_is_taken():
    """One lucky reference among eight gives no ratio of its own."""
    ledger, truth = Ledger("float32"), np.ones(1)
    offs = [1e-9, *[1e-5] * 7]
    for off in offs:
        reference, port = (truth + off).astype(np.float32), (truth + 1e-5).astype(np.float32)
        ledger.enter(Key("loss", "loss", "nonzero"), 0, reference, port, truth)
    [tensor] = ledger.judge()[1]
    assert tensor.ratio is not None
    assert 1 < tensor.ratio[0] < 1.1


def test_a_small_tensor_is_judged_over_the_steps_so_far():
    ledger, truth = Ledger("float32"), np.ones(1)
    for step, off in enumerate((1e-5, 1e-9)):  # at step 1 alone, the port would be far worse than the reference
        ledger.enter(Key("loss", "loss", "nonzero"), step, (truth + off).astype(np.float32),
                       (truth + 1e-5).astype(np.float32), truth)  # fmt: skip
    [tensor] = ledger.judge()[1]
    assert tensor.ratio is not None
    assert tensor.ratio[1] < 1.5


def test_a_stage_shifted_as_a_whole_diverges_though_each_tensor_is_within_budget():
    ledger, random = Ledger("float32"), np.random.default_rng(0)
    for number in range(5):
        truth = random.standard_normal(2000)
        off = 1e-5 * random.standard_normal((2, 2000))
        reference, port = (truth + off[0]).astype(np.float32), (truth + 2 * off[1]).astype(np.float32)
        ledger.enter(Key("activations", f"layer {number}", "nonzero"), 0, reference, port, truth)
    stages, tensors, first = ledger.judge()
    assert all(t.status == ["agrees"] for t in tensors)
    assert stages["activations"].verdict == "diverges"
    assert "median" in first.note


def test_a_claim_that_could_not_fail_is_counted_as_unchecked():
    ledger = Ledger("float64")
    ledger.vacuous(Key("update", "weight decay", "nonzero"), 0, "too small to see")
    assert ledger.judge()[0]["update"].unchecked == 1
    assert ledger.judge()[2] is None


def test_a_tolerance_given_takes_the_place_of_the_stages():
    ledger = Ledger("float64")
    key = Key("trajectory", "loss", "nonzero")
    ledger.enter(key, 0, ONES, ONES + 1e-8, tolerance=Tolerance("relative", 1e-7, ""))
    assert ledger.judge()[2] is None


def test_a_number_that_is_not_finite_on_one_side_diverges_with_its_place_and_its_side():
    ledger, broken = Ledger("float64"), np.array([1.0, np.nan, np.inf, 4.0])
    ledger.enter(Key("activations", "in JAX", "nonzero"), 0, ONES, broken)
    ledger.enter(Key("activations", "in torch", "nonzero"), 0, broken, ONES)
    ledger.enter(Key("activations", "elsewhere", "nonzero"), 0, broken, broken[::-1])
    ledger.enter(Key("activations", "alike", "nonzero"), 0, broken, broken)
    _, tensors, first = ledger.judge()
    assert {t.tensor: t.status for t in tensors} == {
        "in JAX": ["diverges"], "in torch": ["diverges"], "elsewhere": ["diverges"], "alike": ["unchecked"]
    }  # fmt: skip
    notes = {t.tensor: t.note or t.why_unchecked for t in tensors}
    assert notes["in JAX"] == "nan in JAX, 1 in torch at [1], the first of 2 places of 4"
    assert notes["in torch"] == "1 in JAX, nan in torch at [1], the first of 2 places of 4"
    assert notes["alike"] == "nan on both sides at [1], the first of 2 places of 4"
    assert (first.tensor, first.note) == ("in JAX", notes["in JAX"])


def test_a_seed_whose_numbers_are_not_finite_on_both_sides_hides_no_other_seed():
    ledger, broken = Ledger("float64"), np.full(4, np.nan)
    for ours, theirs in ((ONES, 2 * ONES), (broken, broken)):
        ledger.enter(Key("loss", "loss", "nonzero"), 0, ours, theirs)
    assert ledger.judge()[2].relative_l2 == 1


def test_what_is_no_number_and_what_is_laid_out_otherwise_say_so():
    ledger, matrix = Ledger("float64"), np.arange(6.0).reshape(2, 3)
    ledger.enter(Key("activations", "none", "nonzero"), 0, ONES, None)
    ledger.enter(Key("activations", "text", "nonzero"), 0, ONES, "a text")
    ledger.enter(Key("activations", "turned", "nonzero"), 0, matrix, matrix.T)
    notes = {t.tensor: t.note for t in ledger.judge()[1]}
    assert notes == {
        "none": "no numbers in JAX, but NoneType",
        "text": "no numbers in JAX, but str_",
        "turned": "shape (2, 3) in torch, (3, 2) in JAX: transposed",
    }


def test_a_divergence_has_the_diagnosis_of_its_step_and_what_its_group_shares():
    ledger, random = Ledger("float64"), np.random.default_rng(0)
    for name, group, factor in (("a", "matrix", 2), ("b", "matrix", 2), ("c", "head", 1)):
        for step in (0, 1):
            x = random.standard_normal(9)
            ledger.enter(Key("update", name, "nonzero", "update", group), step, x, x if step == 0 else factor * x)
    _, tensors, first = ledger.judge()
    assert (first.tensor, first.step, first.group) == ("a", 1, "matrix")
    assert first.guess == "twice as large; all 2 of group matrix, none of the others"
    assert first.diagnosis == tensors[0].diagnosis
    assert (first.diagnosis.step, first.diagnosis.norm_ratio) == (1, 2.0)
    assert tensors[2].diagnosis is None


def test_an_error_within_its_budget_is_not_diagnosed():
    ledger = Ledger("float64")
    ledger.enter(Key("update", "w", "nonzero"), 0, ONES, ONES * (1 + 1e-12))
    [tensor] = ledger.judge()[1]
    assert (tensor.status, tensor.diagnosis) == (["agrees"], None)
