"""What a page includes from the repository: code by the name of its symbol, and what the runs printed.

A directive stands on a line of its own; a name that is gone stops the build.

    {{ code torch_ref/step.py train_step }}           a function, class or method ("Muon.step"), or the whole file
    {{ code torch_ref/step.py train_step > "for optimizer" .. "for optimizer #2" }}    statements of it, by their start
    {{ side jax_impl/step.py eval_step :: torch_ref/step.py eval_step }}               two of these, side by side
    {{ output shapes linear }}                        section "linear" of docs/output/shapes.txt (docs/runs/shapes.py)
    {{ api jax_impl }}                                the docstrings of every module of a package, by mkdocstrings
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DIRECTIVE = re.compile(r"^\{\{ (code|side|output|api) (.+) \}\}$", re.MULTILINE)
SELECTION = re.compile(r'(?P<path>\S+)(?: (?P<symbol>[\w.]+))?(?: > "(?P<first>[^"]+)"(?: \.\. "(?P<last>[^"]+)")?)?')
SECTION = re.compile(r"^== (.+) ==\n", re.MULTILINE)


class DirectiveError(ValueError):
    """A page asks for something that is not there."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this for every page. Raises DirectiveError for a file, symbol, statement or section not found."""
    return DIRECTIVE.sub(lambda match: expand(match[1], match[2]), markdown)


def expand(kind: str, what: str) -> str:
    """The Markdown that stands in a directive's place."""
    if kind == "code":
        return fenced_code(what)
    if kind == "side":
        left, right = what.split(" :: ")
        return f'<div class="side" markdown>\n\n{fenced_code(left)}\n\n{fenced_code(right)}\n\n</div>'
    if kind == "api":
        return "\n\n".join(f"::: {module}" for module in modules(what))
    name, _, section = what.partition(" ")
    text = read_output(name, section)
    return text if section.startswith("table") else f"```text\n{text}\n```"


def modules(package: str, root: Path = ROOT) -> list[str]:
    """The modules of a package by name, those of its folders last; without the ones that only run a command."""
    files = sorted((root / package).rglob("*.py"), key=lambda path: (len(path.parts), path))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files if path.stem != "__main__"]
    if not names:
        raise DirectiveError(f"there is no package {package!r}")
    return [name.removesuffix(".__init__") for name in names]


def fenced_code(what: str) -> str:
    path = what.split(" ", 1)[0]
    return f'```python title="{path}"\n{select_code(what)}\n```'


def select_code(what: str, root: Path = ROOT) -> str:
    """The source that a selection names, without indentation."""
    match = SELECTION.fullmatch(what)
    if match is None or not (root / match["path"]).is_file():
        raise DirectiveError(f"{what!r} does not name a file of the repository")
    source = (root / match["path"]).read_text()
    node: Any = ast.parse(source)
    for name in match["symbol"].split(".") if match["symbol"] else []:
        named = (child for child in ast.walk(node) if isinstance(child, ast.FunctionDef | ast.ClassDef))
        node = next((child for child in named if child.name == name), None)
        if node is None:
            raise DirectiveError(f"{what!r}: there is no {name!r}")
    lines = source.splitlines()
    if match["first"]:
        first = find_statement(node, match["first"], lines)
        last = find_statement(node, match["last"], lines) if match["last"] else first
        start, end = first.lineno, last.end_lineno
    elif match["symbol"]:
        start, end = min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno
    else:
        start, end = 1, len(lines)
    return textwrap.dedent("\n".join(lines[start - 1 : end]))


def find_statement(node: ast.AST, text: str, lines: list[str]) -> Any:
    """The first statement within `node` whose line starts with `text`; "text #2" is the second."""
    text, _, number = text.partition(" #")
    statements = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node]
    found = sorted(
        (n for n in statements if lines[n.lineno - 1].strip().startswith(text)), key=lambda statement: statement.lineno
    )
    if len(found) < int(number or 1):
        raise DirectiveError(f"no statement starts with {text!r}")
    return found[int(number or 1) - 1]


def read_output(name: str, section: str, root: Path = ROOT) -> str:
    """One section of what a run printed, or all of it without the sections' titles."""
    path = root / "docs" / "output" / f"{name}.txt"
    if not path.is_file():
        raise DirectiveError(f"there is no {path.relative_to(root)}; run docs/runs/{name}.py")
    parts = SECTION.split(path.read_text())
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    if not section:
        return "\n".join(parts[0::2]).strip("\n")
    if section not in sections:
        raise DirectiveError(f"{path.name} has no section {section!r}; it has {', '.join(sections)}")
    return sections[section].strip("\n")
