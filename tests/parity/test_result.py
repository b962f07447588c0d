import json
import math
from dataclasses import replace

from parity.result import Curve, Divergence, Result, StageResult, TensorResult, ratio_to_budget


def a_result(first: Divergence | None, relative_l2: float = 0.5) -> Result:
    stage = StageResult("diverges", "h.0.attn", 1, "native", relative_l2, 1e-13, None, None, 7, 2, 1, {0: 0.1, 1: 9.0})
    tensor = TensorResult("activations", "h.0.attn", "", "native", 8, [0, 1], [0.0, relative_l2], [1e-13, 1e-13], None,
                          ["unchecked", "diverges"])  # fmt: skip
    curve = Curve("native", [0, 1], [2.0, 1.0], [2.0, 1.5], [0.0, 0.5], [1e-16] * 2, [1e-15] * 2, [0], [0.0], [1e-16])
    return Result("gpt", "float64", 2, 0, 1, 1, {"activations": stage}, [tensor], [curve], first, ["a note"])


def test_a_result_survives_its_json():
    result = a_result(Divergence("activations", "h.0.attn", 1, "native", 0.5, 1e-13))
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_what_is_not_finite_is_null_in_json_and_infinite_again_when_read():
    result = a_result(Divergence("activations", "h.0.attn", 1, "native", math.inf, 1e-13), relative_l2=math.inf)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["tensors"][0]["relative_l2"] == [0.0, None]
    assert Result.from_json(values) == result


def test_the_verdict_names_the_first_stage_tensor_and_step():
    assert a_result(None).verdict == "agrees"
    diverged = a_result(Divergence("activations", "h.0.attn", 1, "native", 0.5, 1e-13))
    assert diverged.verdict == "diverges"
    for word in ("activations", "h.0.attn", "step 1", "native"):
        assert word in diverged.sentence


def test_an_error_where_none_is_allowed_is_infinitely_over_budget():
    assert ratio_to_budget(0.0, 0.0) == 0
    assert ratio_to_budget(1e-30, 0.0) == math.inf


def test_a_check_that_compared_nothing_does_not_agree():
    nothing = replace(a_result(None), stages={})
    assert nothing.verdict == nothing.to_json()["verdict"] == "unchecked"
    assert "agrees" not in nothing.sentence
    assert a_result(None).sentence.startswith("The JAX port of gpt agrees")
