"""The pages say what the repository says: every directive and link holds, every figure was printed by a run."""

import re
from pathlib import Path

import pytest

from docs import hooks

DOCS = Path(hooks.ROOT) / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OF_RUNS = [page for page in PAGES if hooks.DIRECTIVE.search(page.read_text()) and page.parent == DOCS]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# A figure: a number with decimals, an exponent or a per cent sign. Versions, paper numbers and code are none.
FIGURE = re.compile(r"(?<![\w./:-])\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+|(?= %))(?![\w.])")


def prose_of(text: str) -> str:
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = hooks.DIRECTIVE.sub("", text)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


def included_in(text: str) -> str:
    return "\n".join(hooks.expand(match[1], match[2]) for match in hooks.DIRECTIVE.finditer(text) if match[1] != "api")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_directive_of_a_page_finds_what_it_names(page):
    assert "{{" not in hooks.on_page_markdown(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", OF_RUNS, ids=lambda page: page.name)
def test_every_figure_in_the_prose_was_printed_by_a_run_of_the_page(page):
    text = page.read_text()
    printed = included_in(text)
    missing = [figure for figure in FIGURE.findall(prose_of(text)) if figure not in printed]
    assert not missing, f"{page.name} states {missing}; no run or code that it includes has them"


def test_every_page_is_in_the_menu():
    menu = (hooks.ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    for page in PAGES:
        assert str(page.relative_to(DOCS)) in menu


def test_every_output_is_shown_on_a_page_and_every_picture_too():
    text = "\n".join(page.read_text() for page in PAGES)
    for output in (DOCS / "output").iterdir():
        assert f"{{{{ output {output.stem}" in text, f"no page shows {output.name}"
    for picture in (DOCS / "images").iterdir():
        assert f"images/{picture.name}" in text, f"no page shows {picture.name}"
