"""The operations of torch as they are recorded, against what hooks, formulas and the source itself say."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.lines.record_torch import record_torch
from parity.widen_torch import widen_module, widened
from tests.parity.lines.reading import close, line_of, only, rand, same

HERE = __file__


class Block(nn.Module):
    """A small transformer block with a cast and fused operations."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.ln_1, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.ln_2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        h = self.ln_1(x.to(torch.float32))
        q, k, v = self.qkv(h).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(2, 5, 8))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


@pytest.fixture(scope="module")
def block():
    """The block's forward and backward pass recorded in float64, and what hooks saw of it."""
    module, x, seen = Block(), rand(2, 5, 8), {}
    widen_module(module)
    for name, part in module.named_children():
        part.register_forward_hook(lambda _m, _args, output, name=name: seen.update({name: output.detach().clone()}))

    def run():
        output = module(x)
        loss = F.cross_entropy(output.view(10, 8), torch.arange(10) % 8)
        loss.backward()
        return {"output": output, "loss": loss, **{name: p.grad for name, p in module.named_parameters()}}

    with widened():
        graph = record_torch(run, dict(module.named_parameters()), {"x": x})
    return module, x, seen, graph


def test_the_values_are_those_that_hooks_see(block):
    _, _, seen, graph = block
    for name, output in seen.items():
        assert output.dtype == torch.float64
        assert any(same(node, output) for node in graph.nodes), name


def test_results_are_what_the_run_returned(block):
    module, _, _, graph = block
    for name, parameter in module.named_parameters():
        assert same(graph.nodes[graph.results[name]], parameter.grad), name


def test_every_result_depends_on_every_parameter_before_it(block):
    module, _, _, graph = block
    names = {graph.nodes[i].name for i in graph.ancestors(graph.results["loss"])} - {""}
    assert names == {"x", *dict(module.named_parameters())}
    for name, _ in module.named_parameters():
        above = {graph.nodes[i].name for i in graph.ancestors(graph.results[name])} - {""}
        assert {"x", "ln_1.weight", "down.bias"} <= above, name


def test_each_input_precedes_its_reader_and_no_value_is_made_from_nothing(block):
    for number, node in enumerate(block[3].nodes):
        assert all(operand < number for operand in node.inputs)
        assert node.inputs or node.op in ("parameter", "input", "aten.arange", "aten.ones", "aten.scalar_tensor"), node


def test_lines_are_the_users_with_torchs_layers_beside_them(block):
    graph = block[3]
    erf = next(node for node in graph.nodes if node.op == "aten.erf" and not node.backward)
    assert (erf.line.file, erf.line.first, erf.line.function) == (HERE, line_of(Block, "F.gelu"), "forward")
    softmax = next(node for node in graph.nodes if node.op == "aten.amax")
    assert (softmax.line.first, softmax.library) == (line_of(Block, "scaled_dot_product"), None)
    norm = next(node for node in graph.nodes if node.op == "aten.rsqrt")
    assert norm.line.first == line_of(Block, "self.ln_1(")
    assert (Path(norm.library.file).name, norm.library.function) == ("normalization.py", "forward")


def test_a_backward_operation_has_the_line_of_its_forward_operation(block):
    graph = block[3]
    backward = [node for node in graph.nodes if node.backward]
    (gelu,) = (node for node in backward if node.op == "aten.erf")
    assert gelu.line.first == line_of(Block, "F.gelu")
    (joined,) = (node for node in backward if node.op == "aten.stack")
    assert joined.line.first == line_of(Block, "permute(2")
    assert all(node.line is not None and node.line.file == HERE for node in backward)
    assert backward == graph.nodes[-len(backward) :]
    assert len(backward) > 50


class Doubled(torch.autograd.Function):
    """Twice its input, with a derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad.neg()


def test_a_derivative_written_by_hand_has_its_own_line():
    x = rand(5).requires_grad_()

    def run():
        Doubled.apply(x.sin()).sum().backward()
        return {"grad": x.grad}

    graph = record_torch(run, {"x": x}, {})
    neg = only(graph, "aten.neg")
    assert (neg.line.first, neg.line.function, neg.backward) == (line_of(Doubled, "neg()"), "backward", True)
    cos = only(graph, "aten.cos")
    assert cos.line.first == line_of(run, "sin()")
    assert graph.nodes.index(neg) in graph.ancestors(graph.results["grad"])


def test_gradients_of_a_value_used_twice_and_of_two_backward_passes_are_added():
    weight = rand(5).requires_grad_()

    def run():
        for power in (2, 3):
            (weight.sin() + weight**power).sum().backward()
        return {"grad": weight.grad}

    graph = record_torch(run, {"weight": weight}, {})
    assert close(graph.nodes[graph.results["grad"]], 2 * weight.cos() + 2 * weight + 3 * weight**2)
    above = [graph.nodes[i] for i in graph.ancestors(graph.results["grad"])]
    assert sum(node.op == "aten.cos" for node in above) == 2
    assert {node.line.first for node in above if node.line} <= {line_of(run, "backward"), line_of(run, "for ")}


def test_a_function_computed_again_in_the_backward_pass_stays_connected():
    x, weight = rand(2, 3), rand(3, 3, seed=1).requires_grad_()

    def run():
        y = torch.utils.checkpoint.checkpoint(lambda x: torch.tanh(x @ weight).sin(), x, use_reentrant=False)
        y.sum().backward()
        return {"grad": weight.grad}

    graph = record_torch(run, {"weight": weight}, {"x": x})
    above = [graph.nodes[i] for i in graph.ancestors(graph.results["grad"])]
    assert {"weight", "x"} <= {node.name for node in above}
    assert all(node.line.first == line_of(run, "lambda") for node in above if node.op == "aten.tanh")


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_a_step_of_an_optimizer_has_torchs_own_lines(optimizer):
    weight, grad = nn.Parameter(rand(4, 3)), rand(4, 3, seed=1)
    weight.grad = grad.clone()
    step = optimizer([weight], lr=0.1, weight_decay=0.01, foreach=False)

    def run():
        step.step()
        return {"weight": weight, **{k: v for k, v in step.state[weight].items() if k.startswith("exp")}}

    graph = record_torch(run, {"weight": weight}, {"grad": weight.grad})
    assert same(graph.nodes[graph.results["weight"]], weight)
    above = [graph.nodes[i] for i in graph.ancestors(graph.results["weight"])]
    assert {"weight", "grad"} <= {node.name for node in above}
    files = {Path(node.line.file).name for node in above if node.line}
    assert files <= {f"{optimizer.__name__.lower()}.py", "adam.py"}
    if optimizer is torch.optim.AdamW:
        decay = next(node for node in above if node.op.startswith("aten.mul") and "weight" in names(graph, node))
        assert "1 - lr * weight_decay" in source(decay.line)
        assert any(node.op == "aten.div" and "addcdiv_" in source(node.line) for node in above)
        assert close(graph.nodes[graph.results["exp_avg"]], 0.1 * grad)


def names(graph, node):
    return {graph.nodes[i].name for i in node.inputs}


def source(line):
    return Path(line.file).read_text().splitlines()[line.first - 1]


def test_gradients_clipped_together_stay_apart():
    grads = {"a": rand(3), "b": rand(4, seed=1)}
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = grad

    def run():
        nn.utils.clip_grad_norm_(parameters, 0.5)
        return {"a": parameters[0].grad, "b": parameters[1].grad}

    originals = {name: grad.clone() for name, grad in grads.items()}
    norm = torch.cat(list(originals.values())).norm()
    graph = record_torch(run, {}, grads)
    for name, grad in originals.items():
        node = graph.nodes[graph.results[name]]
        assert close(node, grad * 0.5 / (norm + 1e-6))
        assert node.line.first == line_of(run, "clip_grad_norm_")
        (written,) = {graph.nodes[i].name for i in node.inputs} & {"a", "b"}
        assert written == name


def test_numbers_that_are_read_and_tensors_that_nobody_gave():
    x, table = rand(4), rand(4, seed=1)

    def run():
        scale = float(x.abs().max().item())
        return {"y": x / scale + table, "kept": (x > 0).long(), "table": table}

    graph = record_torch(run, {}, {"x": x})
    (constant,) = (node for node in graph.nodes if node.op == "constant")
    assert same(constant, table)
    assert graph.nodes[graph.results["table"]] == constant
    assert graph.nodes[graph.results["kept"]].fingerprint.kind == "int"
    assert {node.fingerprint.kind for node in graph.nodes} == {"float", "bool", "int"}


def test_two_names_of_one_array_are_one_node():
    x = rand(4)
    graph = record_torch(lambda: {"y": x + 1}, {"a": x, "b": x}, {})
    assert [node.name for node in graph.nodes] == ["a", ""]


def test_an_alias_does_not_replace_what_it_shows():
    x = rand(4)

    def run():
        y = x.sin()
        detached = y.detach()
        return {"y": y + 1, "detached": detached + 1}

    graph = record_torch(run, {}, {"x": x})
    assert not any(graph.nodes[i].op == "aten.detach" for i in graph.ancestors(graph.results["y"]))
    assert any(graph.nodes[i].op == "aten.detach" for i in graph.ancestors(graph.results["detached"]))
