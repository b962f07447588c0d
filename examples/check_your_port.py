"""A torch model, a half-right JAX port of it, and which layer is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.ad_checkpoint import checkpoint_name
from torch import nn

from jax_impl.models import flatten, unflatten
from parity.capture import capture_jax, capture_torch
from parity.weights import Rule, carry_to_jax, map_names

# torch's name -> the port's, and the transpose of a weight of (out, in)
# that becomes a kernel of (in, out).
RULES = (
    Rule(r"(fc\d)\.weight", r"\1.kernel", axes=(1, 0)),
    Rule(r"norm\.weight", "norm.scale"),
    Rule(r"(fc\d|norm)\.bias", r"\1.bias"),
)
BUDGET = 1e-12  # relative, in float64; a right layer is off by 1e-16


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.norm(self.fc1(x_BF))))


def port(params, x_BF, eps, approximate):
    """Each layer's output goes by the name of torch's module."""
    linear = lambda p, x: x @ p["kernel"] + p["bias"]
    h_BD = checkpoint_name(linear(params["fc1"], x_BF), "fc1")
    mean_B1 = h_BD.mean(-1, keepdims=True)
    var_B1 = h_BD.var(-1, keepdims=True)
    h_BD = (h_BD - mean_B1) * jax.lax.rsqrt(var_B1 + eps)
    h_BD = h_BD * params["norm"]["scale"] + params["norm"]["bias"]
    h_BD = checkpoint_name(h_BD, "norm")
    h_BD = checkpoint_name(jax.nn.gelu(h_BD, approximate), "act")
    return checkpoint_name(linear(params["fc2"], h_BD), "fc2")


def carried(model: nn.Module):
    """torch's weights as the port's, every name accounted for."""
    arrays = {name: p.numpy() for name, p in model.state_dict().items()}
    shapes = {
        "fc1": {"kernel": (64, 32), "bias": (32,)},
        "norm": {"scale": (32,), "bias": (32,)},
        "fc2": {"kernel": (32, 10), "bias": (10,)},
    }
    like = {
        name: jax.ShapeDtypeStruct(shape, jnp.float64)
        for name, shape in flatten_shapes(shapes).items()
    }
    targets = map_names(RULES, arrays, like)
    leaves = carry_to_jax(targets, arrays, like)
    return targets, unflatten(
        {name: jnp.asarray(x) for name, x in leaves.items()}
    )


def flatten_shapes(shapes) -> dict[str, tuple[int, ...]]:
    return {
        f"{a}.{b}": s for a, part in shapes.items() for b, s in part.items()
    }


def relative_l2(found, expected) -> float:
    return float(
        np.linalg.norm(found - expected) / np.linalg.norm(expected)
    )


def check(eps: float, approximate: bool) -> str | None:
    """Prints every layer and gradient; returns the first that is wrong."""
    torch.manual_seed(0)
    model = Original().double()
    x_BF = np.random.default_rng(0).normal(size=(8, 64)) * 0.01
    with capture_torch(model) as passes:
        model(torch.tensor(x_BF)).square().mean().backward()
    expected = passes[0]

    targets, params = carried(model)

    def loss(params):
        return jnp.square(port(params, x_BF, eps, approximate)).mean(), None

    found = capture_jax(loss, params)
    rows = {
        name: (found.activations[name], expected.activations[name])
        for name in ("fc1", "norm", "act", "fc2")
    }
    gradients = flatten(found.param_gradients)
    for name, parameter in model.named_parameters():
        axes = targets[name].axes or tuple(range(parameter.ndim))
        gradient = parameter.grad.numpy().transpose(axes)
        rows[f"d {name}"] = gradients[targets[name].jax], gradient

    first = None
    for name, (ours, theirs) in rows.items():
        error = relative_l2(np.asarray(ours), theirs)
        right = error <= BUDGET
        first = first if right or first else name
        print(f"{name:<13} {'agrees' if right else f'{error:.1e}'}")
    return first


@jax.enable_x64(True)
def main() -> None:
    for title, eps, approximate in (
        ("a first port, with JAX's habits", 1e-6, True),
        ("with torch's eps", 1e-5, True),
        ("and torch's GELU", 1e-5, False),
    ):
        print(f"== {title} ==")
        first = check(eps, approximate)
        print(f"first wrong: {first}" if first else "all agree")


if __name__ == "__main__":
    main()
