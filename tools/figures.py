"""What the runs and logs of `tools.on_gpu` say, as numbers."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from tools.calls import Called, StepError
from twinstep.config import from_dict
from twinstep.flops import flops_per_token


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def logged_step(run: Path) -> int:
    """The last step in a run's metrics, 0 before there is one."""
    return max((line["step"] for line in read_metrics(run)), default=0)


def of_run(run: Path, called: Called) -> dict[str, Any]:
    """Last losses, the median speed of the second half of the logged steps, and model FLOP/s at that speed."""
    lines = read_metrics(run)
    training = [line for line in lines if "loss" in line]
    if len(training) < 1:
        raise StepError(f"{run} has no training step in metrics.jsonl")
    late = training[len(training) // 2 :]
    speed = statistics.median(line["tokens_per_second"] for line in late)
    config = from_dict(json.loads((run / "config.json").read_text(encoding="utf-8")))
    mfu = [line["mfu"] for line in late if "mfu" in line]
    return {
        "loss": training[-1]["loss"],
        "val_loss": next(line["val_loss"] for line in reversed(lines) if "val_loss" in line),
        "tokens_per_second": speed,
        "model_tflops": speed * flops_per_token(config.model, config.data.sequence_len) / 1e12,
        "mfu_as_logged": statistics.median(mfu) if mfu else None,
        "all_tokens_per_second": [round(line["tokens_per_second"]) for line in training],
        **{name: called.entry[name] for name in called.entry if name not in ("command", "exit_code", "tail")},
    }


def compare_runs(one: Path, other: Path) -> dict[str, Any]:
    """Whether two runs logged the same and ended in the same bits; the largest difference of a logged loss."""
    lines = [[{k: v for k, v in x.items() if k not in ("tokens_per_second", "mfu")} for x in read_metrics(run)]
             for run in (one, other)]  # fmt: skip
    losses = [{line["step"]: line["loss"] for line in of if "loss" in line} for of in lines]
    last = max(int(folder.name) for folder in (one / "checkpoints").iterdir() if folder.name.isdigit())
    facts = [run / "checkpoints" / str(last) / "facts" / "metadata" for run in (one, other)]
    sums = [json.loads(path.read_text(encoding="utf-8"))["checksums"] for path in facts]
    return {
        "same_metrics": lines[0] == lines[1],
        "same_bits": sums[0] == sums[1],
        "largest_loss_difference": max(abs(losses[0][step] - losses[1][step]) for step in losses[0]),
        "losses_compared": len(losses[0]),
    }


def outcomes(printed: str) -> dict[str, Any]:
    """Counts and names from what `pytest -vv` printed, even if it did not come to its end."""
    # Alone pytest writes "NAME PASSED", a worker of xdist "PASSED NAME".
    found = {}
    for line in printed.splitlines():
        outcome, name = re.search(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", line), re.search(r"tests/\S+::\S+", line)
        if outcome and name:
            found[name[0]] = outcome[1]
    counts = {kind.lower(): list(found.values()).count(kind) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    if not found:
        raise StepError("pytest ran no test; see the log")
    return {**counts, "failures": [name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")]}
