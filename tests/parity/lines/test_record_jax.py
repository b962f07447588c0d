"""JAX's operations as they are recorded: their values, what they depend on, and their lines."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from parity.lines import jaxpr_values
from parity.lines.fingerprint import distance, fingerprint
from parity.lines.graph import Graph
from parity.lines.record_jax import record_jax
from parity.widen_jax import widened
from tests.parity.ports import llama

RNG = np.random.default_rng(0)
X_BD = RNG.normal(size=(3, 4))
W_DD = RNG.normal(size=(4, 4))
W_LDD = RNG.normal(size=(5, 4, 4)) / 2


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def line_of(function, text: str) -> int:
    """The number of the line within a function that holds the text."""
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    (found,) = [number for number, line in enumerate(lines, first) if text in line]
    return found


def at(graph: Graph, function, text: str) -> list[str]:
    """The operations of a line."""
    file, number = inspect.getsourcefile(inspect.unwrap(function)), line_of(function, text)
    return [node.op for node in graph.nodes if node.line and (node.line.file, node.line.first) == (file, number)]


def holds(graph: Graph, value) -> bool:
    """Whether any node has these numbers."""
    sought = fingerprint(np.asarray(value))
    return any(
        distance(node.fingerprint, sought) < 1e-12 and abs(node.fingerprint.order - sought.order) < 1e-9
        for node in graph.nodes
    )


def leaves_of(graph: Graph, result: str) -> set[str]:
    """The parameters and inputs that a result depends on."""
    return {graph.nodes[number].name for number in graph.ancestors(graph.results[result])} - {""}


def assert_results(graph: Graph, expected) -> None:
    """The results' numbers are those that the function returns."""
    assert graph.results.keys() == expected.keys()
    for name, value in expected.items():
        node, value = graph.nodes[graph.results[name]], np.asarray(value)
        assert node.shape == value.shape
        np.testing.assert_allclose(node.fingerprint.sums, fingerprint(value).sums, rtol=1e-12)
        np.testing.assert_allclose(node.fingerprint.order, fingerprint(value).order, atol=1e-12)
    assert all(operand < number for number, node in enumerate(graph.nodes) for operand in node.inputs)


def network(params, x_BD):
    hidden_BD = jnp.tanh(x_BD @ params["w"])
    centred_BD = hidden_BD - hidden_BD.mean(-1, keepdims=True)
    variance_B1 = jnp.var(hidden_BD, axis=-1, keepdims=True)
    return centred_BD / jnp.sqrt(variance_B1 + 1e-5) * params["scale"]


def of_network(leaves, inputs):
    return {"output": network(leaves, inputs["x"]), "twice": 2 * inputs["x"]}


LEAVES = {"w": W_DD, "scale": RNG.normal(size=4)}


def test_values_are_those_of_an_eager_evaluation():
    graph = record_jax(of_network, LEAVES, {"x": X_BD})
    assert_results(graph, of_network(LEAVES, {"x": X_BD}))
    hidden_BD = jnp.tanh(X_BD @ W_DD)
    assert holds(graph, hidden_BD)
    assert holds(graph, jnp.var(hidden_BD, axis=-1, keepdims=True) + 1e-5)


def test_a_result_depends_on_the_leaves_that_it_is_made_of():
    graph = record_jax(of_network, LEAVES, {"x": X_BD})
    assert leaves_of(graph, "output") == {"w", "scale", "x"}
    assert leaves_of(graph, "twice") == {"x"}
    assert {node.op for node in graph.nodes if not node.inputs} >= {"parameter", "input"}


def test_an_operation_has_the_line_of_the_users_call():
    graph = record_jax(of_network, LEAVES, {"x": X_BD})
    assert at(graph, network, "jnp.tanh") == ["dot_general", "tanh"]
    assert "square" in at(graph, network, "jnp.var"), "within a function that JAX has jitted"
    assert at(graph, network, "jnp.sqrt") == ["add", "sqrt", "div", "broadcast_in_dim", "mul"]
    assert {node.line.function for node in graph.nodes if node.op == "tanh"} == {"network"}


def two_calls(leaves, inputs):
    first_B = jnp.var(inputs["x"], axis=-1)
    second_B = jnp.var(inputs["x"] * 2, axis=-1)
    return {"sum": first_B + second_B}


def test_a_function_that_is_traced_once_has_the_lines_of_each_of_its_calls():
    two_calls({}, {"x": X_BD})  # now JAX holds its trace
    graph = record_jax(two_calls, {}, {"x": X_BD})
    first, second = at(graph, two_calls, "first_B ="), at(graph, two_calls, "second_B =")
    assert "square" in first
    assert second == ["mul", *first]


def with_gradient(forward):
    """The function's loss and gradients, in float64."""

    def of_both(leaves, inputs):
        loss, gradients = jax.value_and_grad(widened(lambda p: jnp.sum(forward(p, inputs["x"]) ** 2)))(leaves)
        return {"loss": loss} | {f"d {name}": gradient for name, gradient in gradients.items()}

    return of_both


def test_the_backward_pass_has_the_lines_of_the_forward_pass():
    graph = record_jax(with_gradient(network), LEAVES, {"x": X_BD})
    assert_results(graph, jax.jit(with_gradient(network))(LEAVES, {"x": X_BD}))
    assert leaves_of(graph, "d w") == {"w", "scale", "x"}
    backward = [node for node in graph.nodes if node.backward]
    assert {node.op for node in graph.nodes if not node.backward} >= {"parameter", "tanh", "dot_general", "reduce_sum"}
    products = [node for node in backward if node.op == "dot_general"]
    assert [node.line.first for node in products] == [line_of(network, "jnp.tanh")]
    assert len([n for n in backward if n.line and n.line.first == line_of(network, "jnp.var")]) > 3
    assert not graph.nodes[graph.results["loss"]].backward
    assert graph.nodes[graph.results["d w"]].backward


@jax.jit
def jitted(x):
    doubled = x * 2
    return jnp.sin(doubled)


@jax.checkpoint
def rematerialized(x):
    return jnp.tanh(x) * x


@jax.custom_vjp
def own_backward(x):
    return jnp.cos(x)


def own_backward_fwd(x):
    return own_backward(x), jnp.exp(x)


def own_backward_bwd(kept, g):
    return (g * jnp.log1p(kept),)


own_backward.defvjp(own_backward_fwd, own_backward_bwd)


@jax.custom_jvp
def own_tangent(x):
    return jnp.sinh(x)


@own_tangent.defjvp
def own_tangent_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return own_tangent(x), dx * jnp.cosh(x)


def calls(params, x):
    x = x @ params["w"]
    a = jitted(x)
    b = rematerialized(a)
    c = own_backward(b)
    return own_tangent(c)


def of_calls(leaves, inputs):
    loss, gradients = jax.value_and_grad(lambda p: calls(p, inputs["x"]).sum())(leaves)
    return {"loss": loss, "d w": gradients["w"]}


@pytest.mark.parametrize("function", [of_calls, with_gradient(calls)], ids=["as written", "widened"])
class TestCalls:
    def graph(self, function):
        graph = record_jax(function, {"w": W_DD}, {"x": X_BD})
        assert_results(graph, jax.jit(function)({"w": W_DD}, {"x": X_BD}))
        return graph

    def test_equations_within_calls_have_their_own_lines(self, function):
        graph = self.graph(function)
        assert at(graph, jitted, "x * 2")[0] == "mul"
        assert at(graph, jitted, "jnp.sin")[0] == "sin"
        assert at(graph, own_backward, "jnp.cos")[0] == "cos"
        assert at(graph, own_tangent, "jnp.sinh")[0] == "sinh"

    def test_a_rule_of_a_custom_derivative_has_its_own_lines(self, function):
        graph = self.graph(function)
        assert {"log1p", "mul"} <= set(at(graph, own_backward_bwd, "jnp.log1p"))
        assert "exp" in at(graph, own_backward_fwd, "jnp.exp")
        assert {"cosh", "mul"} <= set(at(graph, own_tangent_rule, "jnp.cosh"))
        assert {node.backward for node in graph.nodes if node.op == "log1p"} == {True}

    def test_what_is_rematerialized_is_forward(self, function):
        graph = self.graph(function)
        assert at(graph, rematerialized, "jnp.tanh").count("tanh") == 2
        assert {node.backward for node in graph.nodes if node.op == "tanh"} == {False}
        backward = {node.op for node in graph.nodes if node.backward and "rematerialized" in str(node.line)}
        assert "mul" in backward


def layer(x_BD, w_DD):
    return jnp.tanh(x_BD @ w_DD) + x_BD, jnp.sin(x_BD).mean(-1)


def stacked(leaves, inputs, scanned, reverse=False):
    def loss(w_LDD):
        if scanned:
            x_BD, means_LB = jax.lax.scan(layer, inputs["x"], w_LDD, reverse=reverse)
        else:
            x_BD, means = inputs["x"], {}
            for i in range(5)[:: -1 if reverse else 1]:
                x_BD, means[i] = layer(x_BD, w_LDD[i])
            means_LB = jnp.stack([means[i] for i in range(5)])
        return (x_BD**2).sum() + (means_LB**3).sum()

    value, gradient = jax.value_and_grad(loss)(leaves["w"])
    return {"loss": value, "d w": gradient}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_has_the_nodes_of_its_iterations(reverse):
    graphs = {s: record_jax(partial(stacked, scanned=s, reverse=reverse), {"w": W_LDD}, {"x": X_BD}) for s in (1, 0)}
    for scanned, graph in graphs.items():
        assert_results(graph, stacked({"w": W_LDD}, {"x": X_BD}, scanned, reverse))
    for op, backward in (("tanh", False), ("dot_general", False), ("dot_general", True), ("sin", False)):
        one, other = (
            [n.fingerprint for n in graph.nodes if (n.op, n.backward) == (op, backward)] for graph in graphs.values()
        )
        # The first layer's input needs no gradient, which a scan of all layers doesn't know.
        assert (len(one), len(other)) == ((10, 9) if op == "dot_general" and backward else (5, 5))
        for fp in other:
            assert min(distance(fp, of_scan) for of_scan in one) < 1e-12
    assert at(graphs[1], layer, "jnp.tanh").count("tanh") == 5
    assert leaves_of(graphs[1], "d w") == {"w", "x"}


def test_a_long_scan_is_one_node_in_the_middle(monkeypatch):
    whole = record_jax(partial(stacked, scanned=True), {"w": W_LDD}, {"x": X_BD})
    monkeypatch.setattr(jaxpr_values, "MOST", 15)
    graph = record_jax(partial(stacked, scanned=True), {"w": W_LDD}, {"x": X_BD})
    assert len(graph.nodes) < len(whole.nodes)
    ops = [node.op for node in graph.nodes]
    assert ops.count("tanh") == 2
    assert 4 < ops.count("scan") < 12
    assert_results(graph, stacked({"w": W_LDD}, {"x": X_BD}, scanned=True))
    assert leaves_of(graph, "d w") == {"w", "x"}


def scan_in_a_scan(leaves, inputs):
    def outer(x_BD, w_DD):
        def inner(x_BD, row_D):
            return jnp.sin(x_BD * row_D), x_BD.sum()

        x_BD, sums = jax.lax.scan(inner, x_BD, w_DD)
        return x_BD, sums

    x_BD, sums = jax.lax.scan(outer, inputs["x"], leaves["w"])
    return {"x": x_BD, "sums": sums}


def test_a_scan_in_a_scan():
    graph = record_jax(scan_in_a_scan, {"w": W_LDD}, {"x": X_BD})
    assert_results(graph, scan_in_a_scan({"w": W_LDD}, {"x": X_BD}))
    x_BD = X_BD
    for row_D in W_LDD.reshape(-1, 4):
        x_BD = np.sin(x_BD * row_D)
        assert holds(graph, x_BD)
    assert at(graph, scan_in_a_scan, "jnp.sin") == ["broadcast_in_dim", "mul", "sin", "reduce_sum"] * 20


def branches(leaves, inputs):
    def one(x_BD):
        return jnp.sin(x_BD) @ leaves["w"]

    def two(x_BD):
        return jnp.cos(x_BD)

    def step(x_BD, i):
        return jax.lax.cond(i + inputs["n"] > 2, one, two, x_BD), None

    return {"x": jax.lax.scan(step, inputs["x"], jnp.arange(4))[0]}


@pytest.mark.parametrize("n", [0, 1, 9, -9])
def test_a_result_depends_on_the_branch_that_was_taken(n):
    leaves, inputs = {"w": W_DD}, {"x": X_BD, "n": np.int64(n)}
    graph = record_jax(branches, leaves, inputs)
    assert_results(graph, branches(leaves, inputs))
    ops = [graph.nodes[number].op for number in graph.ancestors(graph.results["x"])]
    ones = sum(i + n > 2 for i in range(4))
    assert (ops.count("sin"), ops.count("cos"), ops.count("cond")) == (ones, 4 - ones, 4)
    assert leaves_of(graph, "x") == {"x", "n", "w"} - ({"w"} if not ones else set())
    everywhere = [node.op for node in graph.nodes]
    assert (everywhere.count("sin"), everywhere.count("cos")) == (4, 4)


def others(leaves, inputs):
    key = jax.random.key(3)
    noise_BD = jax.random.normal(jax.random.split(key)[1], (3, 4))
    x_BD = jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x * x + 1, inputs["x"])
    table_D = jnp.asarray(np.arange(4.0) ** 2)
    called_BD = jax.pure_callback(np.sign, jax.ShapeDtypeStruct((3, 4), np.float64), noise_BD)
    ids_B = jnp.argmax(x_BD + noise_BD * table_D, -1)
    return {"x": x_BD, "ids": ids_B, "even": ids_B % 2 == 0, "sign": called_BD, "as it is": inputs["x"], "one": 1.0}


def test_loops_random_numbers_callbacks_and_integers_are_nodes():
    graph = record_jax(others, {}, {"x": X_BD})
    assert_results(graph, {name: jnp.asarray(value) for name, value in others({}, {"x": X_BD}).items()})
    ops = [node.op for node in graph.nodes]
    assert ops.count("while") == ops.count("pure_callback") == ops.count("random_bits") == 1
    assert graph.nodes[graph.results["as it is"]].op == "input"
    constants = [node for node in graph.nodes if node.op == "constant"]
    assert [node.shape for node in constants] == [(4,), ()]
    kinds = {name: graph.nodes[number].fingerprint.kind for name, number in graph.results.items()}
    assert (kinds["x"], kinds["ids"], kinds["even"]) == ("float", "int", "bool")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x_BD):
        x_BD = nn.LayerNorm()(x_BD)
        return nn.Dense(4)(x_BD)


def test_a_library_line_stands_beside_the_users():
    block = Block()
    variables = block.init(jax.random.key(0), X_BD)
    graph = record_jax(lambda leaves, inputs: {"y": block.apply(leaves, inputs["x"])}, variables, {"x": X_BD})
    assert_results(graph, {"y": block.apply(variables, X_BD)})
    (root,) = [node for node in graph.nodes if node.op == "rsqrt"]
    assert (root.line.file, root.line.first) == (__file__, line_of(Block, "nn.LayerNorm"))
    assert root.library.file.endswith("flax/linen/normalization.py")
    assert {node.name for node in graph.nodes if node.op == "parameter"} == {
        "params.Dense_0.bias", "params.Dense_0.kernel", "params.LayerNorm_0.bias", "params.LayerNorm_0.scale"
    }  # fmt: skip


def test_a_framework_alone_has_its_own_line():
    update = optax.adam(1e-2).update
    state = optax.adam(1e-2).init(W_DD)
    recorded = partial(record_jax, leaves={"w": W_DD}, inputs={"g": W_DD * W_DD})
    called = "optax_updates(leaves, inputs)"

    def optax_updates(leaves, inputs):
        updates, _ = update(inputs["g"], state, leaves["w"])
        return {"w": optax.apply_updates(leaves["w"], updates)}

    graph = recorded(optax_updates)
    assert_results(graph, optax_updates({"w": W_DD}, {"g": W_DD * W_DD}))
    (root,) = [node for node in graph.nodes if node.op == "sqrt"]
    assert root.line.first == line_of(optax_updates, "update(inputs")
    assert "optax" in root.library.file, called
    assert leaves_of(graph, "w") == {"w", "g"}


def test_the_lines_of_a_port_with_scanned_layers():
    module, inputs = llama.torch_side()
    forward, params = llama.jax_side(module.state_dict())

    def function(leaves, inputs):
        return {"logits": widened(forward)(leaves, **inputs)}

    graph = record_jax(function, params, inputs)
    assert_results(graph, jax.jit(function)(params, inputs))
    (*_, last) = [node for node in graph.nodes if node.op == "rsqrt"]
    assert last.line.first == line_of(llama.norm, "rsqrt")
    assert at(graph, llama.norm, "rsqrt").count("rsqrt") == 2 * llama.LAYERS + 1
    assert at(graph, llama.attention, "jax.nn.softmax").count("exp") == llama.LAYERS
    outside = [node.op for node in graph.nodes if node.line is None or node.line.file != llama.__file__]
    assert set(outside) <= {"parameter", "input", "constant", "convert_element_type"}
