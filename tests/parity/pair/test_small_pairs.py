"""Small pairs as porters write them: one call, no rules, the right verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import parity
from parity import compare
from tests.helpers.attention import Attention, LinenAttention
from twinstep.errors import UserError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 4)).astype(np.float32)
IMAGES = RANDOM.normal(size=(2, 3, 8, 8)).astype(np.float32)


def weights(module):
    return {name: x.detach().numpy() for name, x in module.state_dict().items()}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Linear(nn.Module):
    def __init__(self, activation=torch.relu):
        super().__init__()
        self.a, self.activation = nn.Linear(4, 5), activation

    def forward(self, x):
        return self.activation(self.a(x))


def linear(activation=jax.nn.relu):
    return lambda p, x: activation(x @ p["w"] + p["b"])


def linear_params(module):
    held = weights(module)
    return {"w": held["a.weight"].T, "b": held["a.bias"]}


def compare_linear(activation=jax.nn.relu, x=X, module=None, **kwargs):
    module = module or Linear()
    return compare(module, linear(activation), linear_params(module), [x], **kwargs)


def test_a_plain_function_without_tags_or_rules_is_judged():
    assert compare_linear().verdict == "agrees"
    result = compare_linear(jax.nn.gelu)
    assert (result.verdict, result.first_divergence.tensor) == ("diverges", "output")


def test_adding_optimizers_changes_no_verdict():
    optimizers = lambda ps: torch.optim.AdamW(ps, 1e-2, weight_decay=1e-2), optax.adamw(1e-2, weight_decay=1e-2)
    result = compare_linear(optimizers=optimizers)
    assert result.verdict == "agrees", result.sentence
    assert result.stages["parameters"].compared == 6
    moments = {"exp_avg/a.weight", "exp_avg_sq/a.bias", "count 0"}
    assert moments <= {t.tensor for t in result.tensors if t.stage == "update"}
    assert compare_linear(jax.nn.gelu, optimizers=optimizers).verdict == "diverges"
    wrong = compare_linear(optimizers=(optimizers[0], optax.adamw(1e-2, weight_decay=1e-1)))
    assert wrong.first_divergence.stage == "update"
    # Of the first step Adam's bias correction hides the first moment's decay.
    wrong = compare_linear(optimizers=(optimizers[0], optax.adamw(1e-2, b1=0.8, weight_decay=1e-2)))
    first = wrong.first_divergence
    assert (first.stage, first.tensor, first.step) == ("update", "exp_avg/a.weight", 0)


def test_the_momentum_of_sgd_is_compared():
    result = compare_linear(
        optimizers=(lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9))
    )
    assert result.verdict == "agrees", result.sentence
    assert "momentum_buffer/a.weight" in {t.tensor for t in result.tensors}


@pytest.mark.parametrize("bad", [np.full((3, 4), np.nan, np.float32), np.full((3, 4), np.inf), np.zeros((0, 4))])
def test_inputs_from_which_nothing_follows_are_refused(bad):
    with pytest.raises(UserError, match=r"^inputs\[0\] (is|has shape) "):
        compare_linear(x=bad)


@pytest.mark.parametrize("x", [X.tolist(), torch.from_numpy(X), jnp.asarray(X)])
def test_inputs_may_be_lists_tensors_or_arrays(x):
    assert compare_linear(x=x).verdict == "agrees"


def test_inputs_may_be_keywords():
    module = Linear()
    assert compare(module, linear(), linear_params(module), {"x": X}).verdict == "agrees"


def test_a_compiled_or_parallel_module_is_the_module_itself():
    assert compare_linear(module=Linear()).verdict == "agrees"
    for wrap in (lambda m: torch.compile(m, backend="eager"), nn.DataParallel):
        module = Linear()
        assert compare(wrap(module), linear(), linear_params(module), [X]).verdict == "agrees"


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x):
        y = self.a(x)
        return {"y": y, "x": x, "n": torch.tensor(3)}


@pytest.mark.parametrize(
    ("returned", "outputs", "noted"),
    [
        (lambda y, x: {"y": y, "x": x}, None, False),
        (lambda y, x: y, None, True),
        (lambda y, x: (x, y), {"y": "1", "x": "0"}, False),
        (lambda y, x: {"out": y}, {"y": "out"}, True),
    ],
)
def test_outputs_are_matched_by_path_or_as_given(returned, outputs, noted):
    module = Several()
    function = lambda p, x: returned(x @ p["w"] + p["b"], x)
    result = compare(module, function, linear_params(module), [X], outputs=outputs)
    assert result.verdict == "agrees", result.sentence
    assert any("were not compared: x" in note for note in result.notes) == noted


def test_outputs_that_are_not_there_are_named():
    module = Several()
    with pytest.raises(UserError, match=r"outputs= names 'z', but the output of torch has 'y', 'x'"):
        compare(module, linear(), linear_params(module), [X], outputs={"z": ""})


class Bias(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)
        nn.init.zeros_(self.a.bias)

    def forward(self, x):
        return self.a(x)


def test_a_trained_bias_that_no_leaf_holds_is_a_divergence_though_it_is_zero():
    module = Bias()
    result = compare(module, lambda p, x: x @ p["w"], {"w": weights(module)["a.weight"].T}, [X])
    first = result.first_divergence
    assert (first.stage, first.tensor) == ("gradients", "a.bias")
    assert "no leaf of the port holds it" in first.note


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, t):
        return self.head(torch.tanh(self.emb(t)))


TOKENS = RANDOM.integers(0, 11, (2, 5))


@pytest.mark.parametrize(
    ("function", "stage"),
    [
        (lambda p, t: jnp.tanh(p["e"][t]) @ p["e"].T, None),
        (lambda p, t: jnp.tanh(p["e"][t]) @ jax.lax.stop_gradient(p["e"]).T, "gradients"),
    ],
)
def test_the_gradient_of_a_tied_array_is_compared(function, stage):
    module = Tied()
    first = compare(module, function, {"e": weights(module)["head.weight"]}, [TOKENS]).first_divergence
    assert stage == (first and first.stage)


def test_a_port_that_unties_agrees_but_in_its_updates():
    module = Tied()
    params = {"e": weights(module)["emb.weight"], "head": weights(module)["emb.weight"].T}
    function = lambda p, t: jnp.tanh(p["e"][t]) @ p["head"]
    assert compare(module, function, params, [TOKENS]).verdict == "agrees"


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, x):
        return self.c2(torch.relu(self.c1(x)))


class NHWC(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.c1 = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
        self.c2 = nnx.Conv(4, 5, (3, 3), padding="VALID", rngs=rngs)

    def __call__(self, x):
        return self.c2(jax.nn.relu(self.c1(x)))


def test_a_port_in_another_layout_agrees_without_rules():
    module = Convolutions()
    function, params = parity.nnx_function(NHWC())
    held = weights(module)
    for name in ("c1", "c2"):
        params[name] = {"kernel": held[f"{name}.weight"].transpose(2, 3, 1, 0), "bias": held[f"{name}.bias"]}
    result = compare(module, function, params, [IMAGES], jax_inputs=[IMAGES.transpose(0, 2, 3, 1)])
    assert result.verdict == "agrees", result.sentence
    assert {t.tensor for t in result.tensors if t.stage == "activations"} == {"c1", "c2", "output"}


class Norm32(nn.Module):
    """A norm as Llama writes it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        wide = x.to(torch.float32)
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


@pytest.mark.parametrize(("eps", "verdict"), [(1e-6, "agrees"), (1e-5, "diverges")])
def test_what_casts_to_float32_inside_is_compared_in_float64(eps, verdict):
    def function(p, x):
        wide = x.astype(jnp.float32)
        return p["scale"] * (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + eps)).astype(x.dtype)

    result = compare(Norm32(), function, {"scale": np.ones(4, np.float32)}, [X])
    assert result.verdict == verdict, result.sentence
    assert any("Casts to a narrower float in torch" in note and "test_small_pairs.py" in note for note in result.notes)


def test_an_output_in_float32_is_compared_in_float64_with_its_gradients():
    assert compare_linear(lambda x: jax.nn.relu(x).astype(jnp.float32)).verdict == "agrees"


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.bn(self.fc(x))


@pytest.mark.parametrize(
    ("momentum", "unbiased", "tensor"), [(0.9, True, None), (0.1, True, "mean"), (0.9, False, "var")]
)
def test_running_statistics_are_compared_after_a_pass_in_train_mode(momentum, unbiased, tensor):
    def function(p, b, x):
        y = x @ p["w"] + p["b"]
        mean, var = y.mean(0), y.var(0)
        seen = var * len(x) / (len(x) - 1) if unbiased else var
        after = {
            "mean": momentum * b["mean"] + (1 - momentum) * mean,
            "var": momentum * b["var"] + (1 - momentum) * seen,
        }
        return (y - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["shift"], after

    module = Normalized().train()
    held = weights(module)
    params = {"w": held["fc.weight"].T, "b": held["fc.bias"], "scale": held["bn.weight"], "shift": held["bn.bias"]}
    buffers = {"mean": held["bn.running_mean"], "var": held["bn.running_var"]}
    result = compare(module, function, params, [RANDOM.normal(size=(8, 4))], buffers=buffers)
    first = result.first_divergence
    assert (first and first.tensor) == (tensor and f"{tensor} (after the pass)"), result.sentence
    assert all(x.sum() == want for x, want in ((module.bn.running_mean, 0), (module.bn.running_var, 3)))


def test_rows_that_do_not_count_are_left_out():
    module = Linear()
    where = np.array([True, True, False])
    function = lambda p, x: linear()(p, x).at[2].add(1.0)
    assert compare(module, function, linear_params(module), [X]).verdict == "diverges"
    assert compare(module, function, linear_params(module), [X], where=where).verdict == "agrees"
    with pytest.raises(UserError, match=r"where has shape \(4,\)"):
        compare(module, function, linear_params(module), [X], where=np.ones(4, bool))


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Linear(4, 5), nn.Dropout(0.5)

    def forward(self, x):
        return self.d(self.a(x))


def test_dropout_left_on_is_named():
    module = Dropping()
    result = compare(module, linear(lambda x: x), linear_params(module), [X])
    assert result.verdict == "diverges"
    assert any("drop at random, which no port can match: d;" in note for note in result.notes)
    assert compare(module.eval(), linear(lambda x: x), linear_params(module), [X]).verdict == "agrees"


class TorchLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x):
        h = (torch.zeros(x.shape[0], 4, dtype=x.dtype),) * 2
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return h[0]


def test_two_biases_that_a_port_adds_up_agree():
    def function(p, x):
        h = c = jnp.zeros((x.shape[0], 4), x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = jnp.split(x[:, t] @ p["wi"] + h @ p["wh"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h

    module = TorchLSTM()
    held = weights(module)
    bias = held["cell.bias_ih"] + held["cell.bias_hh"]
    params = {"wi": held["cell.weight_ih"].T, "wh": held["cell.weight_hh"].T, "b": bias}
    x = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
    result = compare(module, function, params, [x])
    assert result.verdict == "agrees", result.sentence
    params["wi"] = params["wi"][:, RANDOM.permutation(16)]
    wrong = compare(module, function, params, [x]).first_divergence
    assert (wrong.stage, wrong.tensor) == ("weights", "wi")
    assert "another order" in wrong.note


@pytest.mark.parametrize("swapped", [False, True])
def test_a_fused_projection_feeds_three_leaves_by_heads(swapped):
    module = Attention()
    nn.init.normal_(module.att.in_proj_bias)
    nn.init.normal_(module.att.out_proj.bias)
    held = weights(module)
    names = ("key", "query", "value") if swapped else ("query", "key", "value")
    kernels, biases = np.split(held["att.in_proj_weight"], 3), np.split(held["att.in_proj_bias"], 3)
    att = {
        n: {"kernel": w.T.reshape(8, 2, 4), "bias": b.reshape(2, 4)}
        for n, w, b in zip(names, kernels, biases, strict=True)
    }
    att["out"] = {"kernel": held["att.out_proj.weight"].T.reshape(2, 4, 8), "bias": held["att.out_proj.bias"]}
    x = RANDOM.normal(size=(2, 5, 8)).astype(np.float32)
    result = compare(module, parity.linen_function(LinenAttention()), {"att": att}, [x])
    assert result.verdict == ("diverges" if swapped else "agrees"), result.sentence


def test_a_function_and_params_that_cannot_be_are_refused():
    module = Linear()
    with pytest.raises(UserError, match="params holds no array"):
        compare(module, linear(), {}, [X])
    with pytest.raises(UserError, match="params is None"):
        compare(module, linear(), None, [X])
    with pytest.raises(UserError, match="inputs is of type ndarray"):
        compare(module, linear(), linear_params(module), X)
    with pytest.raises(UserError, match=r"pass a torch\.nn\.Module"):
        compare(torch.relu, linear(), linear_params(module), [X])
    with pytest.raises(UserError, match=r"torch's module raises RuntimeError: mat1 and mat2"):
        compare(module, linear(), linear_params(module), [X.T])
    with pytest.raises(UserError, match="dtype is 'float16'"):
        compare(module, linear(), linear_params(module), [X], dtype="float16")
    optimizers = lambda ps: torch.optim.SGD(ps, 0.1), optax.sgd(0.1)
    with pytest.raises(UserError, match="optimizers are compared in float64 only"):
        compare(module, linear(), linear_params(module), [X], dtype="float32", optimizers=optimizers)


def test_a_wrong_shape_of_the_output_is_a_divergence():
    module = Linear()
    result = compare(module, lambda p, x: linear()(p, x)[:2], linear_params(module), [X])
    assert "shape (3, 5) in torch, (2, 5) in JAX" in result.first_divergence.note


def test_convert_makes_the_params_and_tells_equal_arrays_apart():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.LayerNorm(4), nn.LayerNorm(4)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p[0] + p[1]

    function = lambda p, x: norm(jnp.tanh(norm(x, p[1])), p[0])
    convert = lambda s: [[s[f"{name}.{leaf}"].numpy() for leaf in ("weight", "bias")] for name in ("b", "a")]
    result = compare(Norms(), function, None, [X], convert=convert)
    assert result.verdict == "agrees", result.sentence
    assert not result.notes


@pytest.mark.parametrize(("dtype", "kind"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_lower_precision_is_judged_by_the_ratio_of_errors(dtype, kind):
    class Wider(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 128), nn.Linear(128, 64)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x.to(kind))))

    module = Wider().to(kind)
    jax_kind = jnp.dtype(dtype)
    names = ("a", "b")
    params = {n: jnp.asarray(p.detach().float().numpy(), jax_kind) for n, p in module.named_parameters()}

    def function(coarse):
        def port(p, x):
            a, b = ((p[f"{n}.weight"].T, p[f"{n}.bias"]) for n in names)
            h = jnp.tanh((x.astype(jax_kind) @ a[0] + a[1]).astype(coarse))
            return h.astype(jax_kind) @ b[0] + b[1]

        return port

    x = RANDOM.normal(size=(32, 64)).astype(np.float32)
    result = compare(module, function(jax_kind), params, [x], dtype=dtype)
    assert result.verdict == "agrees", result.sentence
    assert result.stages["activations"].ratio is not None
    coarser = jnp.bfloat16 if dtype == "float32" else jnp.float8_e4m3fn
    assert compare(module, function(coarser), params, [x], dtype=dtype).verdict == "diverges"


def test_a_result_can_be_written_shown_and_raised(tmp_path):
    right, wrong = compare_linear(), compare_linear(jax.nn.gelu)
    assert {path.name for path in right.write(tmp_path)} == {"parity.json", "report.html", "errors.png"}
    right.raise_unless_agrees()
    with pytest.raises(AssertionError, match="diverges from PyTorch in float64, first at stage activations"):
        wrong.raise_unless_agrees()
    assert right._repr_html_().startswith("<iframe srcdoc=")


class NNXNormalized(nnx.Module):
    def __init__(self, momentum):
        rngs = nnx.Rngs(0)
        self.fc = nnx.Linear(4, 3, rngs=rngs)
        self.bn = nnx.BatchNorm(3, momentum=momentum, epsilon=1e-5, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.fc(x))


class LinenNormalized(linen.Module):
    momentum: float

    @linen.compact
    def __call__(self, x, train):
        y = linen.Dense(3, name="fc")(x)
        return linen.BatchNorm(use_running_average=not train, momentum=self.momentum, epsilon=1e-5, name="bn")(y)


@pytest.mark.slow
@pytest.mark.parametrize(("momentum", "wrong"), [(0.9, ["bn.var"]), (0.99, ["bn.mean", "bn.var"])])
def test_flax_in_train_mode_is_compared_and_its_statistics_too(momentum, wrong):
    """Flax keeps the biased variance, torch the unbiased one: that is a difference, and it is named."""
    module = Normalized().train()
    held = weights(module)
    x = RANDOM.normal(size=(8, 4)).astype(np.float32)
    fc = {"kernel": held["fc.weight"].T, "bias": held["fc.bias"]}
    params = {"fc": fc, "bn": {"scale": held["bn.weight"], "bias": held["bn.bias"]}}

    function, _, buffers = parity.nnx_function_with_buffers(NNXNormalized(momentum))
    result = compare(module, function, params, [x], buffers=buffers)
    assert result.stages["activations"].verdict == result.stages["gradients"].verdict == "agrees"
    assert diverging(result) == [f"{name} (after the pass)" for name in wrong]

    statistics = {"batch_stats": {"bn": {"mean": held["bn.running_mean"], "var": held["bn.running_var"]}}}
    function = parity.linen_function(LinenNormalized(momentum), mutable=["batch_stats"], train=True)
    result = compare(module, function, params, [x], buffers=statistics)
    assert diverging(result) == [f"batch_stats.{name} (after the pass)" for name in wrong]


def diverging(result) -> list[str]:
    return [t.tensor for t in result.tensors if "diverges" in t.status]


def test_leaves_that_are_no_arrays_are_passed_on_and_trained_around():
    module = Linear()
    params = {**linear_params(module), "activation": jax.nn.relu, "name": "a"}
    function = lambda p, x: p["activation"](x @ p["w"] + p["b"])
    result = compare(module, function, params, [X], optimizers=(lambda ps: torch.optim.SGD(ps, 0.1), optax.sgd(0.1)))
    assert result.verdict == "agrees", result.sentence
    assert result.stages["trajectory"].compared == 9


def test_what_no_dtype_can_be_given_is_named():
    @jax.custom_jvp
    def activation(x):
        return jax.pure_callback(lambda x: np.maximum(x, 0), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    activation.defjvp(lambda x, dx: (activation(*x), jnp.where(x[0] > 0, dx[0], 0)))
    module = Linear()
    result = compare(module, linear(activation), linear_params(module), [X])
    assert result.verdict == "agrees", result.sentence
    assert any(note.startswith("Not widened to float64") and "pure_callback at" in note for note in result.notes)


def test_what_a_conversion_adds_to_a_leaf_has_no_gradient_and_is_trained_around():
    def convert(state):
        return {"w": state["a.weight"].numpy().T, "b": state["a.bias"].numpy() - 1}

    function = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"] + 1)
    optimizers = lambda ps: torch.optim.SGD(ps, 0.1), optax.sgd(0.1)
    result = compare(Linear(), function, None, [X], convert=convert, optimizers=optimizers)
    assert result.stages["update"].verdict == "agrees", result.sentence
