"""Directives of the pages: the right lines of the right file, and an error for what is not there."""

import pytest

from docs import hooks

SOURCE = '''\
"""A module."""

import os


@decorated
def outer(x):
    def inner():
        return 1

    for item in x:
        print(item)
    for item in x:
        pass
    return inner


class Thing:
    def method(self):
        return 2
'''


@pytest.fixture
def root(tmp_path):
    (tmp_path / "code.py").write_text(SOURCE)
    (tmp_path / "docs" / "output").mkdir(parents=True)
    (tmp_path / "docs" / "output" / "run.txt").write_text("== first ==\na 1\n\nb 2\n== table of it ==\n| c |\n")
    return tmp_path


@pytest.mark.parametrize(
    ("selection", "code"),
    [
        ("code.py", SOURCE.rstrip("\n")),
        ("code.py Thing.method", "def method(self):\n    return 2"),
        ("code.py outer.inner", "def inner():\n    return 1"),
        ('code.py outer > "for item"', "for item in x:\n    print(item)"),
        ('code.py outer > "for item #2" .. "return inner"', "for item in x:\n    pass\nreturn inner"),
        ('code.py > "import"', "import os"),
    ],
)
def test_a_selection_gives_its_lines_without_indentation(root, selection, code):
    assert hooks.select_code(selection, root) == code


def test_a_function_is_shown_with_its_decorators(root):
    assert hooks.select_code("code.py outer", root).startswith("@decorated\ndef outer(x):")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("gone.py", "does not name a file"),
        ("code.py gone", "there is no 'gone'"),
        ("code.py Thing.gone", "there is no 'gone'"),
        ('code.py outer > "while"', "no statement starts with 'while'"),
        ('code.py outer > "for item #3"', "no statement starts with 'for item'"),
    ],
)
def test_a_name_that_is_gone_is_an_error(root, selection, message):
    with pytest.raises(hooks.DirectiveError, match=message):
        hooks.select_code(selection, root)


def test_an_output_is_read_by_section(root):
    assert hooks.read_output("run", "first", root) == "a 1\n\nb 2"
    with pytest.raises(hooks.DirectiveError, match="has no section 'second'; it has first, table of it"):
        hooks.read_output("run", "second", root)
    with pytest.raises(hooks.DirectiveError, match=r"run docs/runs/other\.py"):
        hooks.read_output("other", "", root)


def test_a_page_gets_code_output_and_api_in_place_of_its_directives():
    page = hooks.on_page_markdown(
        "before\n\n{{ side jax_impl/step.py eval_step :: torch_ref/step.py eval_step }}\n\n{{ api parity }}\n\nafter"
    )
    assert page.count('<div class="side" markdown>') == 1
    assert page.index('```python title="jax_impl/step.py"\ndef eval_step') < page.index(
        '```python title="torch_ref/step.py"\n@torch.no_grad()\ndef eval_step'
    )
    assert "::: parity\n" in page
    assert "::: parity.weights" in page
    assert "__main__" not in page
    assert "{{" not in page


def test_a_package_that_is_gone_is_an_error():
    with pytest.raises(hooks.DirectiveError, match="there is no package 'gone'"):
        hooks.modules("gone")
