"""`parity check all`: the configurations that together run every line of the port's arithmetic, one after another."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from parity.check import check
from parity.check_configs import split_devices, subject, with_flags
from parity.own_arithmetic import CONFIGURATIONS, needs
from parity.report import write_report
from parity.request import Request
from parity.result import NotRun, Result
from twinstep.terminal import table_console

SUMMARY = "all.json"


def check_all(folder: Path, configurations: Sequence[str] = CONFIGURATIONS) -> int:
    """Check each configuration, write its report into a folder of its own; 0 if all agree and every line ran."""
    console, results = table_console(), list[Result]()
    table = Table("configuration", "verdict", "compared", "seconds", title="python -m parity check")
    with console.status("checking") as status:
        for number, words in enumerate(configurations, 1):
            status.update(f"{number} of {len(configurations)}: {words}")
            result = check_words(words)
            own = folder / f"{number:02}-{words.split()[0]}"
            own.mkdir(exist_ok=True)
            write_report(result, own)
            results.append(result)
            table.add_row(words, result.verdict, str(result.compared), f"{result.seconds:.0f}")
    console.print(table)
    for result in results:
        if result.verdict != "agrees":
            console.print(result.sentence)
    left = run_in_none(results)
    here = [missing for missing in left if not needs(missing)]
    for missing in left:
        what = needs(missing)
        console.print(f"{describe(missing)}: {f'needs {what}' if what else 'ran in none of these'}")
    lines, seconds = sum(len(missing.lines) for missing in here), sum(result.seconds for result in results)
    console.print(f"{lines} lines of the arithmetic ran in none of them. {seconds:.0f} s. Written to {folder}")
    summary = {
        "configurations": [{"command": x.command, "verdict": x.verdict, "seconds": x.seconds} for x in results],
        "not_run": [{**asdict(missing), "needs": needs(missing)} for missing in left],
    }
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return 0 if not here and all(result.verdict == "agrees" for result in results) else 1


def check_words(words: str) -> Result:
    """The check that `parity check WORDS` runs."""
    (model, *flags), devices = split_devices(words.split())
    result = check(Request(with_flags(subject(model), flags), devices=devices, generation=True))
    return replace(result, command=f"python -m parity check {words}")


def run_in_none(results: Iterable[Result]) -> list[NotRun]:
    """The lines that ran in none of the checks, by function."""
    by_check = [{(x.file, x.function): x for x in result.not_run} for result in results]
    left = []
    for place, first in by_check[0].items():
        lines = set(first.lines).intersection(*(set(x[place].lines) if place in x else () for x in by_check))
        if lines:
            left.append(replace(first, lines=sorted(lines), whole=all(place in x and x[place].whole for x in by_check)))
    return left


def describe(missing: NotRun) -> str:
    """A function and, where others of its lines ran, the lines that did not."""
    where = "" if missing.whole else f", line{'s' * (len(missing.lines) > 1)} {', '.join(map(str, missing.lines))}"
    return f"{missing.file} {missing.function}{where}"
