"""Tensors that share memory, are written in place and die, in a recorded graph."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from parity.lines.record_torch import record_torch
from tests.parity.lines.reading import line_of, rand, same


def add_in_place(x):
    y = x.sin()
    y.add_(1)
    return y


def write_a_column(x):
    y = torch.zeros_like(x)
    for i in range(x.shape[1]):
        y[:, i] = x[:, i].exp()
    return y


def write_through_a_view(x):
    y = x.sin()
    flat = y.view(-1)
    flat.mul_(3)
    return y


def write_the_base_of_a_view(x):
    y = x.sin()
    flat = y.t()
    y.mul_(3)
    return flat


def masked(x):
    return x.sin().masked_fill_(x > 0, -1.0)


def copied(x):
    y = torch.empty_like(x)
    y.copy_(x.sin())
    return y


def written_as_out(x):
    y = torch.empty_like(x)
    torch.sin(x, out=y)
    return y


def scattered(x):
    y = x.sin()
    y.index_add_(0, torch.tensor([1, 0]), x[:2].exp())
    return y


def a_state_read_between_writes(x):
    y = torch.zeros_like(x)
    y[0] = x[0].exp()
    for i in range(1, len(x)):
        y[i] = y[i - 1] * 2 + x[i]
    return y


def data_of_another(x):
    y = x.sin()
    y.data.mul_(2)
    return y


@pytest.mark.parametrize(
    "function",
    [
        *(add_in_place, write_a_column, write_through_a_view, write_the_base_of_a_view, masked, copied),
        *(written_as_out, scattered, a_state_read_between_writes, data_of_another),
    ],
)
def test_what_is_written_in_place_is_what_is_read(function):
    x = rand(4, 3)
    graph = record_torch(lambda: {"y": function(x).cos()}, {}, {"x": x})
    cos = graph.nodes[graph.results["y"]]
    assert same(cos, function(x).cos())
    assert same(graph.nodes[cos.inputs[0]], function(x))
    above = graph.ancestors(graph.results["y"])
    assert "x" in {graph.nodes[i].name for i in above}
    writes = {i for i, node in enumerate(graph.nodes) if node.op.endswith("_")}
    assert writes <= above


def test_a_write_of_one_part_is_no_cause_of_another():
    x = rand(4, 3)

    def run():
        y = torch.zeros_like(x)
        left = y[:, :1]
        y[:, 1] = x[:, 1].exp()
        return {"left": left + 1, "right": y[:, 1] + 1}

    graph = record_torch(run, {}, {"x": x})
    assert not any(graph.nodes[i].op == "aten.exp" for i in graph.ancestors(graph.results["left"]))
    assert any(graph.nodes[i].op == "aten.exp" for i in graph.ancestors(graph.results["right"]))


def test_what_a_fill_overwrites_is_not_among_its_inputs():
    x = rand(4)
    graph = record_torch(lambda: {"y": x.sin().copy_(x.cos())}, {}, {"x": x})
    above = {graph.nodes[i].op for i in graph.ancestors(graph.results["y"])}
    assert above == {"input", "aten.cos", "aten.copy_"}


def test_buffers_updated_in_train_mode_are_results():
    norm, x = nn.BatchNorm1d(3).double(), rand(6, 3)

    def run():
        return {"y": norm(x), **dict(norm.named_buffers())}

    graph = record_torch(run, dict(norm.state_dict(keep_vars=True)), {"x": x})
    for name, buffer in norm.named_buffers():
        assert same(graph.nodes[graph.results[name]], buffer)
    mean = graph.nodes[graph.results["running_mean"]]
    assert same(mean, 0.1 * x.mean(0))
    assert "x" in {graph.nodes[i].name for i in graph.ancestors(graph.results["running_mean"])}
    assert mean.line.first == line_of(run, "norm(x)")


def test_nothing_is_kept_alive_and_no_address_is_mistaken():
    x = rand(1000)
    alive = []

    def run():
        y = x
        for i in range(20):
            z = y * (i + 1)
            alive.append(weakref.ref(z))
            y = z / (i + 1)
            z.add_(1)
        fresh = torch.from_numpy(np.ones(1000))
        return {"y": y, "fresh": fresh + 1}

    graph = record_torch(run, {}, {"x": x})
    assert sum(reference() is not None for reference in alive) <= 1
    assert len(graph.ancestors(graph.results["y"])) == 41
    fresh = [graph.nodes[i].op for i in sorted(graph.ancestors(graph.results["fresh"]))]
    assert fresh == ["constant", "aten.lift_fresh", "aten.add"]
