"""What a report says of a divergence: how it is wrong, what computes it, and causes without their consequences."""

import io
import json
import math
import re
from dataclasses import replace

from rich.console import Console

from parity.report import print_report
from parity.report.causes import causes
from parity.report.page import report_page
from parity.report.text import near_one, worst_element
from parity.result import Diagnosis, Result
from tests.helpers.report_cases import agreeing, result, tensor
from tests.parity.test_report import Page

DOUBLED = Diagnosis(0, [3, 17], 0.125, 0.25, 2.0, 1 - 3e-9, "twice as large")
CODE = {"torch": "torch_ref/step.py summed_gradients", "jax": "jax_impl/step.py summed_gradients"}


def doubled() -> Result:
    """One gradient is twice as large, and what follows from it is wrong."""
    shown = result(
        [
            tensor("activations", "linear", [1e-15]),
            tensor("gradients", "linear.weight", [1.0, 1.0], budget=1e-11, diagnosis=DOUBLED),
            tensor("gradients", "linear.bias", [1e-13, 1e-13], budget=1e-11),
            tensor("clip", "global norm before", [1.0], budget=1e-11),
            tensor("clip", "linear.weight", [1e-16], budget=1e-11),
            tensor("trajectory", "loss", [0.2], budget=1e-11),
            tensor("trajectory", "linear.weight", [0.2], budget=1e-11),
        ]
    )
    first = replace(
        shown.first_divergence, guess="twice as large; the one of group matrix, none of the others", code=CODE
    )
    return replace(shown, first_divergence=first, stages={k: replace(s, code=CODE) for k, s in shown.stages.items()})


def words(shown: Result) -> str:
    return "\n".join(Page(report_page(shown)).texts)


def printed(shown: Result, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(shown, console)
    return console.export_text()


def test_the_sentence_says_how_it_is_wrong_and_where_to_look():
    said = "budget 1.0e-11; twice as large; the one of group matrix, none of the others"
    assert doubled().sentence.endswith(f"{said}; see jax_impl/step.py summed_gradients.")
    plain = replace(doubled(), first_divergence=replace(doubled().first_divergence, guess="", code={}))
    assert plain.sentence.endswith("budget 1.0e-11.")


def test_terminal_page_and_json_have_both_values_the_norms_and_the_code():
    out = printed(doubled())
    assert "0.125 in PyTorch, 0.25 in JAX at [3, 17]; norm 2.0000 times PyTorch's, cosine 1 - 3e-9." in out
    assert "Computed by torch_ref/step.py summed_gradients in PyTorch, jax_impl/step.py summed_gradients in JAX." in out
    page = words(doubled())
    for part in ("twice as large", "0.125 in PyTorch, 0.25 in JAX at [3, 17]", "2.0000", "1 - 3e-9", *CODE.values()):
        assert part in page
    found = json.loads(json.dumps(doubled().to_json(), allow_nan=False))
    assert found["first_divergence"]["diagnosis"]["index"] == [3, 17]
    assert found["first_divergence"]["code"] == found["stages"]["gradients"]["code"] == CODE
    assert found["tensors"][1]["diagnosis"]["port"] == 0.25
    assert found["tensors"][2]["diagnosis"] is None
    assert Result.from_json(found) == doubled()


def test_causes_are_listed_and_consequences_counted():
    listed, rest = causes(doubled())
    assert [(c.tensor.stage, c.tensor.tensor, c.step) for c in listed] == [("gradients", "linear.weight", 0)]
    assert rest == 3
    assert "1 of 1 tensor wrong where nothing before is. 3 more follow from them." in words(doubled())


def test_a_later_stage_that_does_not_follow_is_a_cause_of_its_own():
    shown = result(
        [
            tensor("schedule", "matrix learning_rate", [1.0]),
            tensor("activations", "h.0", [1e-16, 1.0]),
            tensor("activations", "h.1", [1.0, 1.0]),
            tensor("loss", "loss", [1.0]),
            tensor("update", "h.0.weight", [1.0]),
            tensor("parameters", "norm.running_mean", [1.0]),
        ]
    )
    listed, rest = causes(shown)
    assert [c.tensor.tensor for c in listed] == ["matrix learning_rate", "h.1", "h.0"]
    assert rest == 3


def test_the_map_of_errors_stands_before_the_table_of_tensors():
    for shown, title in ((doubled(), "Where it diverges"), (agreeing(), "Worst tensors")):
        page = words(shown)
        assert page.index("Error by layer and stage") < page.index(title)


def test_a_row_that_diverges_has_no_note_of_a_step_that_was_unchecked():
    shown = result(
        [tensor("gradients", "w", [0.0, 1.0], status=["unchecked", "diverges"], diagnosis=DOUBLED)],
    )
    shown = replace(shown, tensors=[replace(shown.tensors[0], why_unchecked="the reference is zero, or noise")])
    table = words(shown)[words(shown).index("Where it diverges") :]
    assert "noise" not in table[: table.index("Unchecked")]
    assert "the reference is zero, or noise" in table[table.index("Unchecked") :]


def test_the_functions_of_a_stage_are_shown_only_where_they_are_known():
    assert "What computes each stage" in words(doubled())
    assert "What computes each stage" not in words(agreeing())


def test_nothing_wide_stands_outside_a_box_that_scrolls_and_long_names_wrap():
    text = report_page(doubled())
    style = re.sub(r"\s+", " ", text[text.index("<style>") : text.index("</style>")])
    assert ".scroll { overflow-x: auto; max-width: 100%;" in style
    assert "overflow-wrap: anywhere;" in style[style.index("body {") : style.index("h1 {")]
    assert "tbody th, td.words, .facts td { white-space: normal; overflow-wrap: anywhere;" in style
    assert re.findall(r"<table", text) == re.findall(r"(?<=tabindex=\"0\">)<table", text)
    assert "pre { white-space: pre-wrap;" in style


def test_on_a_phone_a_row_is_a_list_whose_values_have_their_columns_names():
    text = report_page(doubled())
    assert "@media (max-width: 40rem)" in text
    assert "content: attr(data-label)" in text
    cells = [a for tag, a in Page(text).seen if tag == "td"]
    named = {a["data-label"] for a in cells if "data-label" in a}
    assert {"stage", "how it is wrong", "furthest off", "verdict", "gradients", "0"} <= named


def test_values_are_told_apart_and_numbers_near_one_are_shown_by_their_distance():
    assert (
        worst_element(Diagnosis(0, [], 0.1, 0.1 + 1e-12, 1.0, 1.0))
        == "0.1 in PyTorch, 0.100000000001 in JAX at its one number"
    )
    shown = [near_one(x) for x in (None, 1.0, 1 + 3e-9, 1 - 3e-9, -1.0, -1 + 3e-9, 2.0, 1e-9, math.sqrt(2), 0.0)]
    assert shown == ["–", "1", "1 + 3e-9", "1 - 3e-9", "-1", "-(1 - 3e-9)", "2.0000", "1e-09", "1.4142", "0"]
