import io
import json

import pytest
from rich.console import Console

from parity.report import print_fault_matrix, write_fault_report
from parity.report.faults import is_right, outcome, sentence, symbol
from parity.result import STAGES
from tests.helpers.report_cases import ROWS


def printed(rows, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    print_fault_matrix(rows, console)
    return console.export_text()


def test_each_outcome_has_its_word():
    assert [outcome(row) for row in ROWS] == ["caught", "other stage", "missed", "equivalent", "false alarm"]
    assert [is_right(row) for row in ROWS] == [True, False, False, True, False]


def test_the_summary_counts_what_was_caught_and_what_stayed_within_budget():
    assert sentence(ROWS) == (
        "2 of 3 faults that change a number caught, 1 at the right stage; 1 of 2 equivalent rewrites within budget."
    )
    assert sentence(ROWS[:1]) == "1 of 1 fault that change a number caught, 1 at the right stage."
    assert sentence([]) == "No faults were injected."


def test_the_matrix_marks_where_a_fault_was_found_and_where_it_should_have_been():
    symbols = [{stage: symbol(row, stage) for stage in STAGES if symbol(row, stage)} for row in ROWS]
    assert symbols == [
        {"weights": "●"},
        {"loss": "·", "clip": "○", "update": "✗", "parameters": "◇"},
        {"schedule": "○"},
        {},
        {"activations": "✗"},
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_the_printed_matrix_fits_and_shows_names_as_they_are(width):
    out = printed(ROWS, width)
    assert all(len(line) <= width for line in out.splitlines())
    assert out.startswith("✗ 2 of 3")
    assert "\x1b" not in out
    assert "[bold]" in out
    assert printed(ROWS[:1]).startswith("✓ 1 of 1")


def test_faults_json_is_the_rows_and_the_page_is_harmless(tmp_path):
    written = write_fault_report(ROWS, tmp_path / "out")
    assert [path.name for path in written] == ["faults.json", "faults.html", "faults.png"]
    rows = json.loads(written[0].read_text(), parse_constant=pytest.fail)
    assert rows[0] == ROWS[0]
    assert rows[4] == {**ROWS[4], "ratio_to_budget": None}
    page = written[1].read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3
    for part in ("no shape error when the matrix is square", "each group clipped alone", "✗ 4.2e8 ×", "◇ 31 ×"):
        assert part in page
    assert written[2].read_bytes().startswith(b"\x89PNG")
