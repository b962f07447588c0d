"""The wrong lines in a report: both excerpts, what is computed there, and what is not known."""

from dataclasses import replace

import pytest

from parity.lines.line import Line, Lines, short
from parity.report.page import report_page
from parity.report.source import excerpt
from parity.result import Result
from tests.helpers.report_cases import agreeing
from tests.parity.test_report import Page
from tests.parity.test_report_divergence import doubled, printed

OPERATIONS = {"torch": "aten.mul", "jax": "dot_general"}
OPERANDS = {"torch": ["x (agrees)"], "jax": ["sin of line 3 (no counterpart)"]}


@pytest.fixture
def wrong(tmp_path, monkeypatch) -> Result:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "port"):
        (tmp_path / f"{name}.py").write_text("".join(f"{name}_{n} = {n} < 5\n" for n in range(1, 13)))
    lines = Lines(
        Line(str(tmp_path / "model.py"), 6, 6, "forward"),
        Line(str(tmp_path / "port.py"), 2, 3, "apply", exact=False),
        OPERATIONS,
        OPERANDS,
    )
    return replace(doubled(), lines=lines)


def test_the_sentence_ends_with_both_lines_as_seen_from_here(wrong):
    assert wrong.sentence.endswith("first wrong: torch model.py:6 forward, JAX port.py:2-3 apply.")


def test_the_terminal_shows_both_with_three_lines_around(wrong):
    for width in (80, 200):
        out = printed(wrong, width)
        assert "PyTorch: model.py:6 forward" in out
        assert "JAX: at or near port.py:2-3 apply" in out
        assert ">    6 model_6 = 6 < 5" in out
        assert "     3 model_3 = 3 < 5" in out
        assert "model_2 " not in out
        assert ">    3 port_3" in out
        assert "dot_general of sin of line 3 (no counterpart)" in out


def test_the_page_shows_both_with_what_is_wrong_marked(wrong):
    html = report_page(wrong)
    assert '<span class="wrong">   6  model_6 = 6 &lt; 5</span>\n' in html
    assert '<span class="soft">   5  model_5 = 5 &lt; 5</span>\n' in html
    assert "aten.mul of x (agrees)" in "\n".join(Page(html).texts)
    assert "The lines" not in report_page(doubled())


def test_a_side_without_a_line_and_a_file_that_is_gone_are_said(wrong, tmp_path):
    (tmp_path / "port.py").unlink()
    shown = replace(wrong, lines=replace(wrong.lines, torch=None))
    for text in (printed(shown), report_page(shown)):
        assert "no line is known" in text
        assert "port.py:2-3 apply" in text
    assert excerpt(shown.lines.jax) == []


def test_json_has_both_lines_and_reads_them_again(wrong):
    written = wrong.to_json()
    assert written["lines"]["jax"] == {
        "file": wrong.lines.jax.file, "first": 2, "last": 3, "function": "apply", "exact": False,
    }  # fmt: skip
    assert Result.from_json(written).lines == wrong.lines
    assert agreeing().to_json()["lines"] is None


def test_a_file_is_named_from_here_from_its_package_or_in_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short(str(tmp_path / "a" / "b.py")) == "a/b.py"
    assert short("/env/lib/python3.11/site-packages/flax/linen/normalization.py") == "flax/linen/normalization.py"
    assert short("/elsewhere/b.py") == "/elsewhere/b.py"
