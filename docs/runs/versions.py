"""The table of what was run on which versions: a row for each file that `python -m tools.versions` wrote."""

import json
from pathlib import Path
from typing import Any

STACKS = Path(__file__).parent / "stacks"
COLUMNS = ("python", "jax", "flax", "optax", "orbax-checkpoint", "torch")
HEAD = (
    "Python",
    "jax",
    "flax",
    "optax",
    "orbax",
    "torch",
    "on",
    "tests",
    "train, generate",
    "`parity check`",
    "warnings",
)


def cells(row: dict[str, Any]) -> list[str]:
    """One stack's row."""
    found = row["versions"]
    device = found["jax devices"][0] if row["gpu"] else "CPU"
    of_versions = [found[name] or "none" for name in COLUMNS]
    return [*of_versions, device, tests(row), both(row), checks(row.get("parity_check", {})), str(warnings(row))]


def tests(row: dict[str, Any]) -> str:
    part = row.get("tests", {"not_made": "not run"})
    if "not_made" in part:
        return part["not_made"]
    counts = [f"{part[kind]:,} {kind}" for kind in ("passed", "failed", "error", "skipped") if part[kind]]
    which = "all quick ones" if part["paths"] == ["tests"] else "of the arithmetic"
    return f"{which}: {', '.join(counts)}"


def both(row: dict[str, Any]) -> str:
    """The frameworks in which every model was trained and the GPT wrote a text, or what went wrong."""
    train, generate = row.get("train", {}), row.get("generate", {})
    wrong = [part["not_made"] for part in (train, generate) if "not_made" in part]
    return "; ".join(wrong) or ", ".join(side for side in ("jax", "torch") if side in train and side in generate)


def checks(part: dict[str, Any]) -> str:
    """The models of each verdict."""
    if "not_made" in part:
        return part["not_made"]
    verdicts = {model: verdict for model, verdict in part.items() if isinstance(verdict, str)}
    groups = [
        f"{', '.join(model for model in verdicts if verdicts[model] == verdict)}: {verdict}"
        for verdict in sorted(set(verdicts.values()))
    ]
    return "; ".join(groups) or "needs torch"


def warnings(row: dict[str, Any]) -> int:
    """How many different ones Python printed."""
    return len({text for part in row.values() if isinstance(part, dict) for text in part.get("warnings", ())})


def rows() -> list[dict[str, Any]]:
    """By version of Python and of JAX."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(STACKS.glob("*.json"))]
    number = lambda text: [int(part) for part in (text or "0").partition("+")[0].split(".")]
    return sorted(found, key=lambda row: [number(row["versions"][name]) for name in ("python", "jax", "torch")])


if __name__ == "__main__":
    print("== table ==")
    for line in (HEAD, ["---"] * len(HEAD), *map(cells, rows())):
        print(f"| {' | '.join(line)} |")
