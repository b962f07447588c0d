"""What a check could not see: functions and lines of the port that did not run, and numbers that count for nothing."""

from collections.abc import Iterator

from parity.own_arithmetic import what_runs
from parity.report.markup import Markup, element
from parity.report.tables import section, table
from parity.report.text import count
from parity.result import NO_PART, NotRun, Result


def unseen_notes(result: Result) -> Iterator[str]:
    """In two sentences at most; the page lists all."""
    if result.not_run:
        whole = sum(missing.whole for missing in result.not_run)
        rest = len(result.not_run) - whole
        parts = [count(whole, "function")] * bool(whole) + [f"lines of {count(rest, 'function')}"] * bool(rest)
        yield f"Not exercised by this check: {' and '.join(parts)} of the port, in {files(result.not_run)}."
    idle = [f"{idle.number} ({idle.why})" for idle in result.idle if idle.why != NO_PART]
    if idle:
        yield f"Idle here, so that a fault in them would pass: {', '.join(idle)}."


def files(missing: list[NotRun], most: int = 6) -> str:
    """The first of their files, by name, and how many more there are."""
    names = list(dict.fromkeys(x.file for x in missing))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def unseen_section(result: Result) -> Iterator[Markup]:
    """Tables of both, folded."""
    shown = []
    if result.not_run:
        rows = [
            [element("code", x.file), element("code", x.function), lines(x), element("code", what_runs(x))]
            for x in result.not_run
        ]
        caption = f"{count(len(rows), 'function')} that did not run, wholly or in part: a fault there would pass."
        body = table(caption, ["file", "function", "lines", "what runs it"], rows)
        shown.append(element("details", element("summary", caption), body))
    if result.idle:
        rows = [[element("code", idle.number), idle.why] for idle in result.idle]
        caption = f"{count(len(rows), 'number')} whose change this check would not see."
        shown.append(element("details", element("summary", caption), table(caption, ["number", "why"], rows)))
    if shown:
        yield section("Not exercised", *shown)


def lines(missing: NotRun) -> str:
    """All, or the lines' numbers."""
    return "all" if missing.whole else ", ".join(map(str, missing.lines))
