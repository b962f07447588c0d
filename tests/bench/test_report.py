"""What the bench prints and writes."""

import json

import pytest

from bench.options import Row
from bench.report import draw, number, print_table, write_json
from twinstep.errors import UserError

PEAK = {"jax": 2e11, "torch": 3e11}
SLOPE = {"flops_slope": 1.0, "sizes": [2, 4], "seconds": [0.1, 0.2], "flops": [1e9, 2e9]}
ROWS = [
    Row("gpt step", "jax", 10.0, 9.0, 11.0, "ms", peak_share=0.5, others=0.02, extra={"seconds": [0.01]}),
    Row("gpt step", "torch", 15.0, 15.0, 15.0, "ms", ratio=1.5, ratio_low=1.4, ratio_high=1.6),
    Row("growth, slope in depth", "jax", 1.0, 1.0, 1.0, "(FLOPs: 1.00)", extra=SLOPE),
]


def test_a_line_says_value_quartiles_ratio_share_of_peak_and_disturbance(capsys):
    print_table(ROWS, PEAK, "cpu", ["growth"])
    lines = capsys.readouterr().out.splitlines()
    jax, torch = lines[1:3]
    assert jax.split() == ["gpt", "step", "jax", "10", "9", "...", "11", "ms", "50", "%", "0.02"]
    assert torch.split() == ["gpt", "step", "torch", "15", "ms", "1.50", "(1.40", "...", "1.60)"]
    assert lines[-3] == "cpu; largest matrix product, GFLOP/s: jax 200, torch 300."
    assert lines[-1] == "not measured, or not all of it, for lack of time: growth"


def test_where_the_chips_peak_is_known_lines_say_tokens_and_mfu(capsys):
    row = Row("gpt step", "jax", 10.0, 9.0, 11.0, "ms", extra={"tokens_per_second": 535000.0, "mfu": 0.5017})
    print_table([row, ROWS[1]], PEAK, "NVIDIA H200")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["tokens/s", "MFU"]
    assert lines[1].split()[-2:] == ["535,000", "50.2%"]
    assert lines[2].split()[-1] == "1.60)"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.0123"), (9.876, "9.88"), (123.4, "123"), (12345.6, "12,346")]
)
def test_numbers_are_shown_to_three_digits(value, shown):
    assert number(value) == shown


def test_the_json_holds_command_machine_peak_and_every_row(tmp_path):
    write_json(tmp_path / "bench.json", "python -m bench", ROWS, PEAK, "cpu")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["command"] == "python -m bench"
    assert found["peak_flops"] == PEAK
    assert {"device", "cpu", "cores", "system", "python", "versions", "date"} <= set(found["machine"])
    assert [row["side"] for row in found["rows"]] == ["jax", "torch", "jax"]
    assert found["rows"][0]["extra"] == {"seconds": [0.01]}


def test_a_json_that_cannot_be_written_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"--json .* cannot be written: Is a directory"):
        write_json(tmp_path, "python -m bench", ROWS, PEAK, "cpu")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[:2], ROWS[2:]], ids=["both", "neither", "bars", "lines"])
def test_the_picture_shows_whatever_rows_there_are(tmp_path, rows):
    draw(tmp_path / "bench.png", rows)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
