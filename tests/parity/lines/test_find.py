"""Which operation is wrong, on small graphs that are written by hand: the numbers are NumPy's."""

import numpy as np
import pytest

from parity.lines.find import find
from parity.lines.fingerprint import distance, fingerprint
from parity.lines.graph import Graph, Node
from parity.lines.line import Line, one_line
from parity.lines.match import match, relation

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((2, 6, 8)), RANDOM.standard_normal((2, 6, 8))
B, T, H, C = 2, 6, 4, 2


class Writer:
    """A graph, node by node; the line of each is its number."""

    def __init__(self, file: str) -> None:
        self.file, self.nodes, self.values = file, [], []

    def leaf(self, value, name: str, op: str = "input") -> int:
        return self.add(value, op, (), name=name)

    def add(self, value, op: str, inputs, name: str = "", backward: bool = False) -> int:
        value = np.asarray(value)
        line = None if name else one_line(self.file, len(self.nodes), "forward")
        self.nodes.append(Node(op, tuple(inputs), value.shape, line, None, fingerprint(value), name, backward))
        self.values.append(value)
        return len(self.nodes) - 1

    def then(self, op: str, function, *inputs: int) -> int:
        return self.add(function(*(self.values[i] for i in inputs)), op, inputs)

    def graph(self, output: int) -> Graph:
        return Graph(self.nodes, {"output": output})


def found(torch: Writer, ours: int, jax: Writer, theirs: int):
    return find(torch.graph(ours), jax.graph(theirs), [("output", "output")])


def numbers(answer) -> tuple:
    """The node of either side that is named."""
    return tuple(None if one is None else one.node for one in (answer.torch, answer.jax))


def both(*functions):
    """Two graphs that begin with X and apply one function after the other, all written alike."""
    sides = []
    for name, chain in zip(("model.py", "port.py"), functions, strict=True):
        writer = Writer(name)
        at = writer.leaf(X, "x")
        for function in chain:
            at = writer.then(getattr(function, "__name__", "op"), function, at)
        sides += [writer, at]
    return sides


def test_what_is_right_has_no_suspects_though_it_is_computed_in_another_way():
    # x^2 - mean^2 beside the mean of squared distances: in between nothing is equal.
    one = [lambda x: x - x.mean(-1, keepdims=True), np.square, lambda x: x.mean(-1), np.sqrt]
    other = [lambda x: (x**2).mean(-1) - x.mean(-1) ** 2, np.sqrt]
    assert found(*both(one, other)) is None


def test_a_wrong_operation_is_named_on_both_sides_and_what_follows_is_not():
    answer = found(*both([np.sin, np.tanh, np.exp], [np.sin, np.arctan, np.exp]))
    assert numbers(answer) == (2, 2)
    assert answer.torch.line == Line("model.py", 2, 2, "forward")
    assert [one.status for one in answer.jax.operands] == ["agrees"]


def test_what_the_port_leaves_out_is_named_on_torchs_side_and_there_the_port_goes_on_too_early():
    answer = found(*both([np.sin, np.tanh, np.exp], [np.sin, np.exp]))
    assert numbers(answer) == (2, 2)
    last = found(*both([np.sin, np.tanh], [np.sin]))
    assert numbers(last) == (2, 1)  # torch computes one thing more; the port ends with what it would be computed from


def test_what_the_port_does_more_is_named():
    assert numbers(found(*both([np.sin], [np.sin, np.tanh]))) == (1, 2)


def test_a_table_made_in_float32_does_not_hide_what_is_wrong_after_it():
    table = lambda x: np.cos(x)
    rounded = lambda x: np.cos(x).astype(np.float32).astype(np.float64)
    answer = found(*both([np.sin, rounded, np.exp, np.tanh], [np.sin, table, np.exp, np.arctan]))
    assert numbers(answer) == (4, 4)
    assert answer.tolerance > 1e-9


def test_a_small_error_is_found_at_a_fine_tolerance():
    eps = lambda value: lambda x: x + value
    answer = found(*both([np.square, eps(1e-6), np.sqrt], [np.square, eps(1e-8), np.sqrt]))
    assert numbers(answer) == (2, 2)


def attention(file: str, scores):
    writer = Writer(file)
    q, k = writer.leaf(X, "q"), writer.leaf(Y, "k")
    at = writer.then("product", scores, q, k)
    mask = np.where(np.tri(T, dtype=bool), 0, -np.inf)
    at = writer.then("mask", lambda s: s + mask, at)
    return writer, writer.then("softmax", lambda s: np.exp(s) / np.exp(s).sum(-1, keepdims=True), at)


def test_queries_and_keys_exchanged_are_found_at_the_product_although_its_numbers_are_the_same():
    right = attention("model.py", lambda q, k: q @ k.swapaxes(1, 2))
    wrong = attention("port.py", lambda q, k: k @ q.swapaxes(1, 2))
    assert numbers(found(*right, *wrong))[1] == 2


def test_a_wrong_order_of_axes_in_a_reshape_is_found_there():
    def heads(file: str, split):
        writer = Writer(file)
        x = writer.then("sin", np.sin, writer.leaf(X, "x"))
        at = writer.then("reshape", split, x)
        return writer, writer.then("product", lambda q: q @ q.swapaxes(-1, -2), at)

    right = heads("model.py", lambda x: x.reshape(B, T, H, C).swapaxes(1, 2))
    wrong = heads("port.py", lambda x: x.reshape(B, T, C, H).transpose(0, 3, 1, 2))
    assert numbers(found(*right, *wrong))[1] == 2


def test_positions_that_are_off_by_one_are_found_where_they_are_made():
    def embedding(file: str, positions):
        writer = Writer(file)
        table, at = writer.leaf(RANDOM_TABLE, "table", "parameter"), writer.add(np.arange(5), "arange", ())
        at = writer.then("positions", positions, at)
        return writer, writer.then("take", lambda t, i: t[i], table, at)

    RANDOM_TABLE = np.random.default_rng(1).standard_normal((7, 3))
    right, wrong = embedding("model.py", lambda i: i * 1), embedding("port.py", lambda i: i + 1)
    assert numbers(found(*right, *wrong)) == (3, 2)


def test_a_mask_with_one_position_too_many_is_found_where_it_is_made_and_its_complement_is_the_same():
    def masked(file: str, mask, keep):
        writer = Writer(file)
        s = writer.leaf(X[:, :, :T], "s")
        m = writer.add(mask, "compare", ())
        return writer, writer.then("where", lambda s, m: np.where(m, s, 0) if keep else np.where(m, 0, s), s, m)

    right = masked("model.py", ~np.tri(T, dtype=bool), False)
    assert found(*right, *masked("port.py", np.tri(T, dtype=bool), True)) is None
    assert numbers(found(*right, *masked("port.py", np.tri(T, k=1, dtype=bool), True)))[1] == 1


def test_equal_numbers_several_times_over_are_the_same():
    twice = lambda x: np.concatenate([x, x], -1)
    assert numbers(found(*both([np.cos, twice, np.tanh], [np.cos, np.arctan, twice]))) == (3, 2)


def test_what_is_left_of_equal_numbers_is_rounding_and_says_nothing():
    noise = lambda x: (x + 1e-16 * RANDOM.standard_normal(x.shape)) - x
    ours, theirs = both([np.sin, noise, np.tanh], [np.sin, noise, np.tanh])[::2]
    sides = match(ours.graph(3), theirs.graph(3), 1e-11)
    assert not sides[0].telling[2] and not sides[1].telling[2]


def test_a_region_where_what_went_in_is_computed_differently_too():
    one = [np.sin, lambda x: x + 1, np.square, np.tanh]
    other = [np.sin, lambda x: x + 2, lambda x: x**2 - 2 * x, np.arctan]
    answer = found(*both(one, other))
    assert answer.jax.line.first == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, "same"),
        (lambda x: x.reshape(12, 8), "same"),
        (lambda x: x.transpose(2, 0, 1), "transposed"),
        (lambda x: x[:, ::-1], "reordered"),
        (lambda x: x[:, :, ::-1], "reordered"),
        (lambda x: np.concatenate([x, x]), "unknown"),
    ],
)
def test_how_equal_numbers_stand_in_another_array(change, expected):
    nodes = [Node("op", (), x.shape, None, None, fingerprint(x)) for x in (X, change(X))]
    assert relation(*nodes, 1e-11) == expected


def test_axes_exchanged_at_the_same_shape_are_swapped():
    square = RANDOM.standard_normal((2, 5, 5))
    nodes = [Node("op", (), x.shape, None, None, fingerprint(x)) for x in (square, square.swapaxes(1, 2))]
    assert relation(*nodes, 1e-11) == "swapped"


def test_a_fingerprint_does_not_depend_on_the_order_and_does_on_the_numbers():
    a, b = fingerprint(X), fingerprint(X.transpose(2, 1, 0))
    assert distance(a, b) < 1e-14
    assert distance(a, fingerprint(X * (1 + 1e-6))) > 1e-7
    assert distance(a, fingerprint(X + 1e-6)) > 1e-8
    assert distance(a, fingerprint(-X)) > 1e-3
    assert distance(a, fingerprint(X[:1])) == np.inf


def test_masked_and_infinite_numbers_count_as_nothing():
    masked = np.where(np.tri(T, 8, dtype=bool), X, -np.inf)
    huge = np.where(np.tri(T, 8, dtype=bool), X, -1e38)
    assert distance(fingerprint(masked), fingerprint(huge)) == 0
    assert fingerprint(masked).telling


@pytest.mark.parametrize("array", [np.zeros(9), np.full(9, 2.0), np.tri(4), np.arange(9), np.array([1.0, 2.0])])
def test_constants_masks_integers_and_few_numbers_say_nothing(array):
    assert not fingerprint(array).telling
