import pytest

from parity.report.heat import MOST_ROWS, OVER, UNCHECKED, WHOLE, by_layer, by_step
from parity.report.page import report_page
from tests.helpers.report_cases import agreeing, diverging, result, tensor


def test_parameters_their_gradients_and_states_belong_to_their_layer():
    heat = by_layer(agreeing())
    assert heat.rows == ["h.0.attn.c_q", WHOLE]
    layer = {stage for row, stage in heat.cells if row == "h.0.attn.c_q"}
    assert layer == {"weights", "activations", "gradients", "update"}
    assert heat.cells["h.0.attn.c_q", "activations"].value == pytest.approx(0.03)
    assert "h.0.attn.c_q [1], step 1" in heat.cells["h.0.attn.c_q", "activations"].detail
    assert heat.cells["h.0.attn.c_q", "gradients"].text == "40 %"
    assert heat.cells[WHOLE, "evaluation"].level == UNCHECKED


def test_heat_says_in_words_what_its_colour_says():
    cells = by_layer(diverging()).cells
    for (_, stage), cell in cells.items():
        assert (cell.level == OVER) == cell.text.startswith("✗"), stage
    assert cells["h.1", "activations"].text == "✗ ∞"
    assert cells[WHOLE, "loss"].level == OVER
    assert cells["h.0", "activations"].level < OVER


def test_a_deep_model_is_shown_by_blocks():
    tensors = [tensor("activations", f"h.{i}.{part}", [1e-15]) for i in range(21) for part in ("attn.q", "attn", "mlp")]
    assert by_layer(result(tensors)).rows == [f"h.{i}" for i in range(21)]


def test_of_too_many_layers_the_worst_are_kept():
    tensors = [tensor("activations", f"layer{i}", [1e-16 * (1 + i)]) for i in range(MOST_ROWS + 7)]
    heat = by_layer(result(tensors))
    assert heat.rows == [f"layer{i}" for i in range(7, MOST_ROWS + 7)]
    assert heat.left_out == [f"layer{i}" for i in range(7)]
    assert "7 layers with smaller errors" in report_page(result(tensors))


def test_many_steps_share_columns_and_keep_their_worst():
    shown = result([tensor("loss", "loss", [1e-16] * 100 + [9e-14] + [1e-16] * 99)])
    heat = by_step(shown)
    assert len(heat.columns) <= 12
    worst = [column for column in heat.columns if heat.cells["loss", column].value > 0.5]
    assert worst == ["85–101"]
    assert heat.cells["loss", worst[0]].detail == "step 100"
