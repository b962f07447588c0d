import re
from pathlib import Path

import pytest
from rich.table import Table

from twinstep.terminal import table_console

ROOT = Path(__file__).parents[2]
NAMES = [f"h.{layer}." + "attention.projection." * 12 + "weight" for layer in range(2)]


def print_names() -> None:
    table = Table("tensor", "verdict", "error")
    for name in NAMES:
        table.add_row(name, "agrees", "1.0e-16")
    table_console().print(table)


def test_in_a_pipe_no_name_is_cut_or_wrapped(capsys):
    print_names()
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        (line,) = [line for line in lines if name in line]
        assert "agrees" in line
        assert "1.0e-16" in line
    assert max(map(len, lines)) < 2 * len(NAMES[0]), "the lines are padded"


@pytest.mark.parametrize("columns", [60, 90])
def test_on_a_terminal_the_table_is_as_wide_as_it(columns, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_names()
    assert {len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in capsys.readouterr().out.splitlines()} == {columns}


def test_every_table_goes_through_the_one_console():
    rooms = ("twinstep", "jax_impl", "torch_ref", "parity", "bench")
    sources = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    made = [path for path in sources if re.search(r"\bConsole\((?!stderr)", path.read_text())]
    assert made == [ROOT / "twinstep" / "terminal.py"]
