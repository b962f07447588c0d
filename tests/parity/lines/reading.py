"""Small things to read a recorded graph with."""

import inspect

import numpy as np
import torch

from parity.lines.fingerprint import distance, fingerprint
from parity.lines.record_torch import equal


def line_of(function, text):
    """The number of the first line of a function that has a text."""
    lines, first = inspect.getsourcelines(function)
    return next(first + i for i, line in enumerate(lines) if text in line)


def rand(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def same(node, tensor):
    return equal(node.fingerprint, fingerprint(tensor.detach().numpy()))


def only(graph, op, **wanted):
    """The one node of an operation."""
    (node,) = (n for n in graph.nodes if n.op == op and all(getattr(n, k) == v for k, v in wanted.items()))
    return node


def close(node, tensor):
    return (
        node.shape == tuple(tensor.shape) and distance(node.fingerprint, fingerprint(tensor.detach().numpy())) < 1e-13
    )
