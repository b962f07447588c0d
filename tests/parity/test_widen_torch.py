"""torch code that computes in float32 inside, against the same formulas in NumPy's float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.lines.line import short
from parity.widen_torch import widen_module, widened

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 8))


def close(actual, expected, tolerance=1e-14):
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class RMSNorm(nn.Module):
    """As in transformers' Llama."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(dtype)


def rms_norm(x, weight):
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def run(module, *args):
    with widened():
        return module(*(torch.from_numpy(x) for x in args))


def test_a_norm_that_casts_is_computed_in_float64():
    module = RMSNorm()
    widen_module(module)
    weight = module.weight.detach().numpy()
    close(run(module, X), rms_norm(X, weight))
    assert np.abs(module(torch.from_numpy(X)).detach().numpy() - rms_norm(X, weight)).max() > 1e-9  # as it is written


def test_gradients_pass_through_casts_in_float64():
    module = RMSNorm()
    widen_module(module)
    x = torch.from_numpy(X).requires_grad_()
    with widened():
        torch.sin(module(x)).sum().backward()
    weight = module.weight.detach().numpy()
    s = 1 / np.sqrt((X * X).mean(-1, keepdims=True) + 1e-6)
    g = np.cos(rms_norm(X, weight))
    close(module.weight.grad, (g * X * s).sum(0))
    close(x.grad, g * weight * s - X * s**3 * (g * weight * X).mean(-1, keepdims=True))


def test_rotary_tables_made_on_the_way_are_exact():
    def rotary(x):
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, 4, dtype=torch.int64).float() / 4))
        angles = torch.outer(torch.arange(x.shape[0]).float(), frequencies)
        cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        a, b = x[:, :4].float(), x[:, 4:].float()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).type_as(x)

    angles = np.outer(np.arange(5), 10000.0 ** (-np.arange(4) / 4))
    rotated = (X[:, :4] + 1j * X[:, 4:]) * np.exp(1j * angles)
    close(run(rotary, X), np.concatenate([rotated.real, rotated.imag], -1))


def test_complex_numbers_are_widened():
    def rotate(x):
        angles = torch.arange(5, dtype=torch.float32) * torch.tensor(0.1, dtype=torch.float32)
        return torch.view_as_real(
            torch.view_as_complex(x.float().reshape(5, 4, 2))
            * torch.polar(torch.ones(5), angles).to(torch.complex64)[:, None]
        )

    rotated = (X[:, ::2] + 1j * X[:, 1::2]) * np.exp(0.1j * np.arange(5))[:, None]
    close(run(rotate, X), np.stack([rotated.real, rotated.imag], -1))


DTYPES = {
    "softmax": (lambda x: F.softmax(x, -1, dtype=torch.float32), softmax),
    "sum": (lambda x: x.sum(-1, dtype=torch.float16), lambda x: x.sum(-1)),
    "mean": (lambda x: x.mean(-1, dtype=torch.bfloat16), lambda x: x.mean(-1)),
    "full": (lambda x: x.half() * torch.full((8,), 0.1, dtype=torch.half), lambda x: x * 0.1),
    "tensor": (lambda x: x * torch.tensor([0.1], dtype=torch.float32), lambda x: x * 0.1),
    "default": (lambda x: x.float() * torch.linspace(0, 1, 8), lambda x: x * np.linspace(0, 1, 8)),
    "new": (lambda x: x + x.new_full((8,), 0.1, dtype=torch.float32), lambda x: x + 0.1),
    "type": (lambda x: x.type(torch.FloatTensor) / 3, lambda x: x / 3),
    "out": (lambda x: torch.exp(x, out=torch.empty(x.shape, dtype=torch.float32)), np.exp),
    "mask": (lambda x: F.softmax(x + torch.where(torch.arange(8) < 3, 0, torch.finfo(torch.float32).min), -1),
             lambda x: np.concatenate([softmax(x[:, :3]), 0 * x[:, 3:]], -1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", DTYPES)
def test_every_way_to_name_a_dtype_is_widened(kind):
    function, expected = DTYPES[kind]
    close(run(function, X), expected(X))


def test_integers_stay_integers():
    with widened() as casts:
        x = torch.tensor([1.7, 2.2]).to(torch.int64) + torch.arange(2)
        assert x.dtype == torch.int64
        assert (x > 1).dtype == torch.bool
        assert x.to(torch.int32).dtype == torch.int32
    assert [x.tolist(), casts] == [[1, 3], []]


def test_autocast_casts_nothing():
    module = nn.Linear(8, 3)
    widen_module(module)

    def function(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x @ x.T @ x, module.weight, module.bias)

    close(run(function, X), X @ X.T @ X @ module.weight.detach().numpy().T + module.bias.detach().numpy(), 1e-13)


def batch_norm(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


@pytest.mark.parametrize("before", [True, False], ids=["widened before", "left in float32"])
def test_batch_norm_in_training_updates_its_statistics(before):
    module = nn.BatchNorm1d(8)
    if before:
        widen_module(module)
    close(run(lambda x: module(x.float()), X), batch_norm(X))
    expected = 0.1 * X.mean(0), 0.9 + 0.1 * X.var(0, ddof=1)
    tolerance = 1e-14 if before else 1e-7
    np.testing.assert_allclose(module.running_mean, expected[0], rtol=tolerance)
    np.testing.assert_allclose(module.running_var, expected[1], rtol=tolerance)
    assert module.num_batches_tracked == 1


def test_a_narrow_tensor_is_written_in_place_and_read_again():
    cache = torch.zeros(5, 8)

    def function(x):
        cache[1:3] = x[1:3].float()
        cache.mul_(0.5)
        cache[2].add_(1)
        return cache + x

    expected = np.zeros((5, 8))
    expected[1:3] = X[1:3] / 2
    expected[2] += 1
    close(run(function, X), expected + X, 1e-6)
    np.testing.assert_allclose(cache, expected, rtol=1e-6)
    assert cache.dtype == torch.float32


def test_lstm():
    module = nn.LSTM(8, 3)
    widen_module(module)
    w, u, b, c = (p.detach().numpy() for p in module.parameters())
    h = cell = np.zeros(3)
    rows = []
    for x in X:
        i, f, g, o = np.split(w @ x + b + u @ h + c, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(cell)
        rows.append(h)
    close(run(lambda x: module(x.float())[0], X), np.stack(rows))


def test_attention_with_a_mask_made_before():
    mask = torch.full((5, 5), -1e9).triu(1)
    attend = lambda x: F.scaled_dot_product_attention(x.half()[None], x.half()[None], x.half()[None], attn_mask=mask)[0]
    scores = X @ X.T / math.sqrt(8) + np.triu(np.full((5, 5), -1e9), 1)
    close(run(attend, X), softmax(scores) @ X)


def test_group_norm_convolution_and_embedding():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.conv = nn.Embedding(7, 8), nn.Conv1d(8, 4, 3)

        def forward(self, ids):
            return F.group_norm(self.conv(self.table(ids).float().T[None]).float(), 2)[0]

    module = Net()
    widen_module(module)
    x = module.table.weight.detach().numpy()[[1, 5, 2, 6]].T
    kernel, bias = module.conv.weight.detach().numpy(), module.conv.bias.detach().numpy()
    y = np.stack([np.einsum("oik,ik->o", kernel, x[:, t : t + 3]) + bias for t in range(2)], -1).reshape(2, -1)
    expected = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5)
    close(run(module, np.array([1, 5, 2, 6])), expected.reshape(4, 2))


@pytest.mark.parametrize(
    "shapes", [((24, 8), (3, 8, 16)), ((3, 16, 8), (8, 24)), ((16, 24), (24, 8)), ((2, 8, 8), (2, 8, 16))]
)
def test_grouped_products_that_torch_lacks_in_float64(shapes):
    """Against torch's own in bfloat16, on whole numbers, which both compute exactly."""
    a, b = (torch.from_numpy(RNG.integers(-3, 4, size=shape).astype(float)) for shape in shapes)
    offs = None if len(shapes[0]) == len(shapes[1]) == 3 else torch.tensor([8, 8, 24], dtype=torch.int32)
    with widened():
        found = torch._grouped_mm(a, b, offs)
    close(found, torch._grouped_mm(a.bfloat16(), b.bfloat16(), offs).double())


def test_a_line_is_named_once():
    def function(x):
        for _ in range(2):
            x = x.float()  # the line
            x = x.to(torch.int32).to(torch.float64)
        return F.softmax(x, -1, dtype=torch.float32)

    first = function.__code__.co_firstlineno
    with widened() as casts:
        function(torch.ones(3, dtype=torch.float64))
        assert [str(cast) for cast in casts] == [f"{short(__file__)}:{first + n} function" for n in (2, 4)]


def test_everything_is_as_before_outside():
    with widened(), pytest.raises(ZeroDivisionError):
        1 / 0  # noqa: B018
    assert torch.ones(2).dtype == torch.float32
    assert torch.ones(2, dtype=torch.float64).float().dtype == torch.float32


def test_a_module_is_widened_with_all_it_holds_and_ties():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.register_buffer("table", torch.ones(2))
            self.a.register_buffer("table", self.table)
            self.register_buffer("ids", torch.arange(2))
            self.frequencies = torch.ones(2, dtype=torch.complex64)
            self.kept = {"x": [torch.ones(2).half()], "y": (self.frequencies, 1), "z": self.a.weight}
            self.dtype = torch.float32

    net = Net()
    weight = net.a.weight
    widen_module(net)
    assert net.a.weight is net.b.weight is net.kept["z"] is weight
    assert net.table is net.a.table
    assert net.frequencies is net.kept["y"][0]
    assert {p.dtype for p in net.parameters()} == {net.table.dtype, net.kept["x"][0].dtype} == {torch.float64}
    assert net.frequencies.dtype == torch.complex128
    assert [net.ids.dtype, net.dtype] == [torch.int64, torch.float32]


@pytest.mark.slow
def test_transformers_llama_is_computed_in_float64():
    """Against the formula, with the frequencies that the module keeps, which were made in float32."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 11}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    model = transformers.LlamaForCausalLM(config).eval()
    widen_module(model)
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    ids = np.array([3, 1, 4, 1, 5])
    with widened() as casts:
        found = model(torch.from_numpy(ids)[None]).logits[0]

    def norm(x, name):
        return rms_norm(x, p[f"model.{name}.weight"])

    def linear(x, name):
        return x @ p[f"model.layers.0.{name}.weight"].T

    def rotate(x):
        angles = np.outer(np.arange(5), model.model.rotary_emb.inv_freq.numpy())
        a, b = x[..., :4], x[..., 4:]
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)

    h = p["model.embed_tokens.weight"][ids]
    x = norm(h, "layers.0.input_layernorm")
    q = rotate(linear(x, "self_attn.q_proj").reshape(5, 2, 8).swapaxes(0, 1))
    k, v = rotate(linear(x, "self_attn.k_proj")), linear(x, "self_attn.v_proj")
    scores = q @ k.T / math.sqrt(8) + np.triu(np.full((5, 5), -np.inf), 1)
    h = h + linear((softmax(scores) @ v).swapaxes(0, 1).reshape(5, 16), "self_attn.o_proj")
    x = norm(h, "layers.0.post_attention_layernorm")
    gate = linear(x, "mlp.gate_proj")
    h = h + linear(gate * sigmoid(gate) * linear(x, "mlp.up_proj"), "mlp.down_proj")
    close(found, norm(h, "norm") @ p["lm_head.weight"].T)
    assert {cast.file.rsplit("/", 1)[1] for cast in casts} == {"modeling_llama.py"}
