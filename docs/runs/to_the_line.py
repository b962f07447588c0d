"""The lines of a wrong activation, its graphs as a picture, and how many planted bugs were found to the line."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn
from torch.nn import functional

import parity
from parity.lines.find import depends_on
from parity.lines.graph import Graph
from parity.lines.match import Side, match
from parity.lines.record_jax import record_jax
from parity.lines.record_torch import record_torch
from parity.lines.suspects import suspects

HERE = Path(__file__).parent
IMAGES = Path(os.environ.get("TWINSTEP_IMAGES", "docs/images"))
COLORS = {"known": "#d9dee3", "other way": "white", "suspect": "#d9534f", "follows": "#f3b8b5"}
X = np.random.default_rng(0).standard_normal((5, 8))


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        wide = self.up(x)
        active = functional.gelu(wide)
        return self.down(active)


def port(params, x, approximate=True):
    wide = x @ params["up.weight"].T + params["up.bias"]
    active = jax.nn.gelu(wide, approximate=approximate)
    return active @ params["down.weight"].T + params["down.bias"]


def graphs(approximate: bool) -> tuple[Graph, Graph]:
    """Of the forward pass of both."""
    module, x = Original().double(), torch.from_numpy(X)
    ours = record_torch(lambda: {"output": module(x)}, dict(module.named_parameters()), {"x": x})
    with jax.enable_x64(True):
        params = {name: jnp.asarray(p.detach().numpy()) for name, p in module.named_parameters()}
        run = lambda params, inputs: {"output": port(params, inputs["x"], approximate)}
        theirs = record_jax(run, params, {"x": jnp.asarray(X)})
    return ours, theirs


def draw(axes: Axes, ours: Graph, theirs: Graph, title: str) -> None:
    """Both graphs as columns in the order of their execution, counterparts joined."""
    among = tuple(depends_on(graph, list(graph.results.values())) for graph in (ours, theirs))
    sides = match(ours, theirs, (among[0], among[1]), 1e-11)
    places: list[dict[int, int]] = []
    for column, (side, nodes) in enumerate(zip(sides, among, strict=True)):
        shown = [n for n in sorted(nodes) if side.telling[n] and side.graph.nodes[n].inputs]
        places.append({n: -row for row, n in enumerate(shown)})
        colors = colored(side, nodes)
        for n, y in places[column].items():
            node = side.graph.nodes[n]
            name = f"{node.op.removeprefix('aten.')}, line {node.line.first}" if node.line else node.op
            box = {"boxstyle": "round", "facecolor": COLORS[colors[n]], "edgecolor": "#57606a"}
            axes.text(column, y, name, ha="center", va="center", fontsize=7, bbox=box)
    for n, y in places[0].items():
        for other in sides[0].matches[n]:
            if other in places[1]:
                axes.plot([0.25, 0.75], [y, places[1][other]], color="#0757ba", linewidth=0.8)
    axes.set_xlim(-0.5, 1.5)
    axes.set_ylim(-max(map(len, places)), 1.5)
    for column, framework in enumerate(("PyTorch", "JAX")):
        axes.text(column, 1, framework, ha="center", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def colored(side: Side, nodes: set[int]) -> dict[int, str]:
    """What each node is."""
    first = set(suspects(side, nodes, backward=False))
    found: dict[int, str] = {}
    for n in sorted(nodes):
        before = {found.get(operand) for operand in side.graph.nodes[n].inputs}
        if side.matched(n):
            found[n] = "known"
        elif n in first:
            found[n] = "suspect"
        else:
            found[n] = "follows" if before & {"suspect", "follows"} else "other way"
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Of each port, how many bugs are named at the line on either side."""
    lines = ["| port | bugs | JAX's line | torch's line |", "|---|---:|---:|---:|"]
    ports = list(dict.fromkeys(row["port"] for row in rows))
    right = {side: Counter(row["port"] for row in rows if row[side] == "right") for side in ("jax", "torch")}
    for name in ports:
        many = sum(row["port"] == name for row in rows)
        lines.append(f"| {name} | {many} | {right['jax'][name]} | {right['torch'][name]} |")
    total = {side: sum(right[side].values()) for side in right}
    share = {side: f"{total[side]} ({total[side] / len(rows):.0%})" for side in right}
    lines.append(f"| **all** | {len(rows)} | {share['jax']} | {share['torch']} |")
    sure = [row for row in rows if row["exact"]]
    both = {side: sum(row[side] == "right" for row in sure) for side in right}
    lines.append(f"| those said to be exact | {len(sure)} | {both['jax']} | {both['torch']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    module = Original()
    params = {name: p.detach().numpy() for name, p in module.named_parameters()}
    result = parity.compare(module, port, params, [X])
    assert result.lines is not None
    print("== an activation ==")
    for side, line in (("torch", result.lines.torch), ("jax", result.lines.jax)):
        print(f"{side:<6}{line}")
        print(f"      {result.lines.operations[side]} of {', '.join(result.lines.operands[side])}")
    print(f"== table of bugs ==\n{table(json.loads((HERE / 'lines.json').read_text()))}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 6.5))
    draw(left, *graphs(approximate=False), "a right port")
    draw(right, *graphs(approximate=True), "tanh for erf")
    figure.tight_layout()
    figure.savefig(IMAGES / "lines.png", dpi=130)
