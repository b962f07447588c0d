"""Fused operations of torch by their parts: the same numbers, and nothing fused left."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.lines.record_torch import record_torch
from tests.parity.lines.reading import close, line_of, rand

HERE = __file__
W, B, X = rand(8, seed=3), rand(8, seed=4), rand(2, 6, 8)
TARGETS = torch.arange(12) % 8
MASK = torch.ones(6, 6, dtype=torch.bool).tril()
FUSED = {
    "layer_norm": lambda x: F.layer_norm(x, (8,), W, B),
    "layer_norm without weights": lambda x: F.layer_norm(x, (8,)),
    "rms_norm": lambda x: F.rms_norm(x, (8,), W),
    "group_norm": lambda x: F.group_norm(x, 2, W[:6], B[:6]),
    "batch_norm": lambda x: F.batch_norm(x, None, None, W[:6], B[:6], training=True),
    "batch_norm in evaluation": lambda x: F.batch_norm(x, B[:6], W[:6].abs(), W[:6], B[:6]),
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.cos(), x.sin(), is_causal=True),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(x, x.cos(), x.sin(), attn_mask=MASK),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        x.view(2, 4, 3, 4), x.cos().view(2, 2, 6, 4), x.sin().view(2, 2, 6, 4), scale=0.3, enable_gqa=True
    ),
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
    "hardswish": F.hardswish,
    "glu": F.glu,
    "logsigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": lambda x: F.linear(x, torch.outer(W, B), B),
    "baddbmm": lambda x: torch.baddbmm(x @ x.mT, x, x.mT, beta=2, alpha=3),
    "convolution": lambda x: F.conv1d(x, X[:, :, :3], W[:2], padding=1),
    "cross_entropy": lambda x: F.cross_entropy(x.view(12, 8), TARGETS),
    "cross_entropy with smoothing": lambda x: F.cross_entropy(x.view(12, 8), TARGETS, label_smoothing=0.1, weight=W**2),
    "cross_entropy with masked targets": lambda x: F.cross_entropy(
        x.view(12, 8), torch.where(TARGETS > 4, -100, TARGETS), reduction="none"
    ),
    "mse_loss": lambda x: F.mse_loss(x, x.cos()),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, x.cos()),
    "huber_loss": lambda x: F.huber_loss(x, x.cos()),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy_with_logits(x, (X > 0).double()),
    "variance and mean": lambda x: torch.var_mean(x, -1)[0],
    "variance without correction": lambda x: x.var((0, 2), correction=0, keepdim=True),
    "std": lambda x: x.std(-1),
    "std of all": lambda x: x.std(),
}
WHOLE = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "softmax", "scaled_dot", "gelu", "silu", "mish", ".elu")
WHOLE += ("softplus", "nll_loss", "addmm", "baddbmm", "lstm", "gru", "cross_entropy", "logsumexp", "glu", "var_mean")
WHOLE += ("addcdiv", "lerp", "smooth_l1", "huber", "mse_", "hardswish", "_backward", ".std", ".var", "prims.")


@pytest.mark.parametrize("name", FUSED)
def test_the_parts_of_a_fused_operation_compute_what_it_does(name):
    function = FUSED[name]
    plain, x = X.clone().requires_grad_(), X.clone().requires_grad_()
    expected = function(plain)
    (expected * expected.detach().cos()).sum().backward()

    def run():
        output = function(x)
        (output * output.detach().cos()).sum().backward()
        return {"output": output, "grad": x.grad}

    outputs = {}
    graph = record_torch(lambda: outputs.update(run()) or outputs, {}, {"x": x})
    torch.testing.assert_close(outputs["output"], expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(outputs["grad"], plain.grad, rtol=1e-13, atol=1e-13)
    whole = {node.op for node in graph.nodes if any(word in node.op for word in WHOLE)}
    assert whole <= {"aten.convolution_backward"}
    assert {node.line.file for node in graph.nodes if node.line} == {HERE}
    for result in graph.results.values():
        assert "x" in {graph.nodes[i].name for i in graph.ancestors(result)}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention, nn.TransformerEncoderLayer])
@pytest.mark.parametrize("train", [True, False])
def test_layers_of_torch_are_recorded_by_their_parts(kind, train):
    torch.manual_seed(0)
    arguments = {nn.MultiheadAttention: (8, 2), nn.TransformerEncoderLayer: (8, 2, 16, 0.0)}.get(kind, (8, 4))
    layer, x = kind(*arguments).double().train(train), X.clone()
    inputs = (x, x, x) if kind is nn.MultiheadAttention else (x,)

    def run():
        with torch.set_grad_enabled(train):
            output = layer(*inputs)
        return {"output": output if isinstance(output, torch.Tensor) else output[0]}

    expected = run()["output"]
    graph = record_torch(run, dict(layer.named_parameters()), {"x": x})
    assert close(graph.nodes[graph.results["output"]], expected)
    above = [graph.nodes[i] for i in graph.ancestors(graph.results["output"])]
    assert {"x", *dict(layer.named_parameters())} <= {node.name for node in above}
    assert not {node.op for node in graph.nodes if any(word in node.op for word in WHOLE)}
    assert {node.line.first for node in graph.nodes if node.line} == {line_of(run, "layer(")}
    assert sum(node.op in ("aten.mm", "aten.bmm") for node in above) >= 3
