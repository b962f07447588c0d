import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from parity.report import print_report, write_report
from parity.report.curves import figures
from parity.report.page import report_page
from parity.report.svg import linear_axis, log_axis
from parity.report.text import elide, number, printable, ratio, share
from parity.result import Result
from tests.helpers.report_cases import EVIL, agreeing, curve, diverging, empty, in_float32, result, tensor
from twinstep.errors import UserError

CASES = {"agreeing": agreeing, "diverging": diverging, "float32": in_float32, "empty": empty}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements, attributes and text as a browser would see them; unclosed or crossed elements are errors."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def printed(shown: Result, width: int = 80, files=()) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(shown, console, files)
    return console.export_text()


@pytest.mark.parametrize("name", CASES)
def test_every_file_of_a_report_is_written_whole(name, tmp_path):
    shown = CASES[name]()
    written = write_report(shown, tmp_path / "new" / "folder")
    expected = {"parity.json", "report.html", "errors.png", *(["losses.png"] if shown.curves else [])}
    assert {path.name for path in written} == expected == {path.name for path in (tmp_path / "new/folder").iterdir()}
    values = json.loads(written[0].read_text(), parse_constant=pytest.fail)
    assert values == shown.to_json()
    for path in written[2:]:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", CASES)
def test_the_page_is_well_formed_and_takes_nothing_from_outside(name):
    text = report_page(CASES[name]())
    page = Page(text)
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    for _, attributes in page.seen:
        assert not {"src", "href", "srcset", "style"} & attributes.keys()
        assert not any(key.startswith("on") for key in attributes)
    assert "url(" not in text
    assert "@import" not in text
    policies = [a["content"] for t, a in page.seen if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'")


def test_hostile_names_are_escaped_everywhere():
    """`diverging` has such a name in every field that holds text."""
    text = report_page(diverging())
    page = Page(text)
    assert "<script" not in text
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 12
    shown = "".join(page.texts)
    assert printable(EVIL) in shown


def test_the_verdict_stands_first_and_the_notes_next():
    page = Page(report_page(agreeing()))
    words = "\n".join(page.texts)
    order = [words.index(part) for part in (agreeing().sentence, agreeing().notes[0], "Worst tensors")]
    assert order == sorted(order)
    lines = printed(agreeing(), width=120).splitlines()
    assert lines[0].startswith("✓ The JAX port of gpt agrees")
    assert agreeing().notes[0] in lines[2]


def test_unchecked_gradients_are_named_in_the_first_lines_and_only_once():
    silent = replace(agreeing(), notes=[])
    said = "1 of 4 comparisons of gradients could not have failed"
    assert said in printed(silent, 120).splitlines()[2]
    assert said in "".join(Page(report_page(silent)).texts).partition("Stages")[0]
    assert "could not have failed" not in printed(agreeing(), 120)
    assert "!" not in printed(replace(diverging(), notes=[], stages={}), 120)


def test_the_page_fits_a_phone_and_both_colour_schemes():
    text = report_page(agreeing())
    page = Page(text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.seen
    assert "prefers-color-scheme: dark" in text
    for match in re.finditer("<table", text):  # every table scrolls in a box of its own
        assert re.search(r'<div class="scroll"[^>]*>$', text[: match.start()])


def test_pictures_and_tables_are_described_in_words():
    page = Page(report_page(agreeing()))
    count = {tag: sum(t == tag for t, _ in page.seen) for tag in ("table", "caption", "figure", "figcaption")}
    assert count["table"] == count["caption"] > 4
    assert count["figure"] == count["figcaption"] == 2
    for tag, attributes in page.seen:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_the_page_says_how_to_repeat_the_check():
    words = "\n".join(Page(report_page(agreeing())).texts)
    for part in (agreeing().command, "2.13.0", "0.10.2", "seed 0", "model.depth", "train.steps"):
        assert part in words


def test_the_first_divergence_names_the_last_tensor_that_was_right():
    shown = result(
        [
            tensor("activations", "h.0", [1e-15]),
            tensor("activations", "h.1", [1e-3]),
            tensor("activations", "h.2", [0.0]),
        ]
    )
    words = Page(report_page(shown)).texts
    assert words[words.index("last within budget before it") + 1] == "h.0"
    assert "h.1" in words[words.index("First divergence") :][:6]


def test_unchecked_comparisons_are_listed_with_their_reason():
    words = Page(report_page(agreeing())).texts
    assert "2 tensors with comparisons that could not have failed." in words
    assert "the reference is zero, or noise" in words


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", CASES)
def test_the_terminal_table_fits_its_width(name, width):
    assert all(len(line) <= width for line in printed(CASES[name](), width).splitlines())


def test_the_terminal_shows_names_as_they_are_and_sends_no_control_characters(tmp_path):
    out = printed(diverging(), 200, [tmp_path / "parity.json", tmp_path / "report.html"])
    assert "\x1b" not in out
    assert "[bold]" in out
    assert "h[bold]x" in printed(result([tensor("loss", "h[bold]x", [1e-14])]), 120)  # not taken for a style
    assert "h.0.attn.c_q [1]" in printed(agreeing(), 120)
    assert f"Written to {tmp_path}: parity.json, report.html" in out.replace("\n", "")


def test_a_wide_terminal_shows_ratio_and_median():
    header = next(line for line in printed(in_float32(layers=3), 120).splitlines() if line.startswith("stage"))
    assert "ratio" in header
    assert "median" in header
    assert "ratio" not in printed(agreeing(), 120).splitlines()[3]


@pytest.mark.parametrize("width", [80, 120])
def test_low_precision_says_the_median_and_the_worst_ratio(width):
    shown = in_float32(layers=7)
    said = "median 1.03 in the worst stage, 1.60 for the worst tensor (weights, transformer.blocks.6"
    assert said in " ".join(printed(shown, width).split())
    assert said in "".join(Page(report_page(shown)).texts)
    assert "median" not in printed(agreeing(), width)


def test_of_several_seeds_the_one_nearest_to_its_budget_is_drawn():
    curves = [curve(scale=1e-16), curve(scale=1e-16, broken=True), curve("native"), curve(scale=1e-16)]
    first, second = figures(result([], curves, seed=5, seeds=3))
    assert "seed 6, of 3" in first.caption
    assert math.isinf(max(first.errors[2].y))
    assert second.init == "native"
    assert "seed" not in second.caption


def test_an_earlier_losses_picture_does_not_survive_a_report_without_curves(tmp_path):
    write_report(result([], [curve()]), tmp_path)
    assert (tmp_path / "losses.png").exists()
    write_report(empty(), tmp_path)
    assert not (tmp_path / "losses.png").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*another --out-dir"):
        write_report(empty(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""


def test_numbers_are_short_and_keep_what_matters():
    assert [number(x) for x in (None, 0.0, 1.14e-15, 1e-13, 0.54, 15.2, 999.4, 2e8, math.inf, math.nan)] == [
        "–", "0", "1.1e-15", "1e-13", "0.54", "15", "999", "2e8", "∞", "NaN",
    ]  # fmt: skip
    assert [share(x) for x in (0.0, 1e-9, 0.011, 1.0, 12.3, 4.1e8, math.inf)] == [
        "0", "< 0.01 %", "1.1 %", "100 %", "12 ×", "4.1e8 ×", "∞",
    ]  # fmt: skip
    assert [ratio(x) for x in (None, 1.034, 5e7)] == ["–", "1.03", "5e7"]
    assert elide("abcdefghij", 6) == "ab…hij"
    assert printable("a\x1b\u202eb\n") == "a\\x1b\\u202eb\\n"


def test_axes_hold_every_finite_value_and_put_zero_at_the_bottom():
    axis = log_axis([0.0, 1e-16, 2e-9, math.inf, math.nan])
    assert axis.place(0.0) == axis.place(axis.low) == 0
    assert 0 < axis.place(1e-16) < axis.place(2e-9) < 1
    assert axis.ticks()[0] == (axis.low, "0")
    flat = linear_axis([2.0, 2.0, math.nan])
    assert flat.place(2.0) == pytest.approx(0.5)
    assert log_axis([]).place(1.0) == 1
