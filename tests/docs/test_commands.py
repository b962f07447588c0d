"""What the commands of README and pages write in a checkout, git ignores."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITE = ("--out", "--out-dir", "--json")
# Where a command writes if nothing is said, and what it writes beside a file that is named.
DEFAULTS = [
    "runs/jax-gpt-1/",
    "examples/runs/jax-gpt-1/",
    "parity-report/",
    "loss.png",
    "bench.png",
    "gpu.log",
    "site/",
    ".pytest_cache/",
]


def outputs(text: str) -> list[str]:
    """The files and folders, relative to the checkout, that the commands in a text name as theirs to write.

    Without what goes into docs/: a page is made of it, and it is committed.
    """
    found = []
    for command in re.findall(r"(?:python|torchrun) [^`\n]+", text.replace("\\\n", " ")):
        words = shlex.split(command.replace("...", ""), comments=True)
        found += [words[at + 1] for at, word in enumerate(words[:-1]) if word in WRITE]
        if "convert" in words:
            found.append(words[words.index("convert") + 2])
    return [name for name in found if not name.isupper() and not name.startswith(("/", "docs/"))]


def is_ignored(name: str) -> bool:
    folder = "" if "." in name or name.endswith("/") else "/"
    return subprocess.run(["git", "check-ignore", "-q", name + folder], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_git_ignores_what_the_commands_of_a_page_write(page):
    assert [name for name in outputs(page.read_text()) if not is_ignored(name)] == []


@pytest.mark.parametrize("name", DEFAULTS)
def test_git_ignores_what_commands_write_by_default(name):
    assert is_ignored(name)


def test_outputs_are_found():
    text = (
        "`python -m bench --json b.json`\npython -m parity convert runs/a as-b --to hf  # --out c\n--out-dir /tmp/run"
    )
    assert outputs(text) == ["b.json", "as-b"]
    assert not is_ignored("b.json")
