"""The smallest JAX loop with two optimizers: AdamW and Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_impl.models.layers import Embedding, Linear
from jax_impl.muon import muon


class Model(nnx.Module):
    def __init__(self, vocabulary: int, width: int, classes: int):
        self.embedding = Embedding(
            vocabulary, width, dtype=jnp.float64, param_dtype=jnp.float64
        )
        self.linear = Linear(
            width, classes, bias=False, param_dtype=jnp.float64
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return self.linear(self.embedding(tokens_BT))


def make_optimizer() -> optax.GradientTransformation:
    adamw = optax.adamw(0.01, weight_decay=0.0)
    constant = optax.constant_schedule
    matrix = muon(
        constant(0.01),
        constant(0.95),
        constant(0.0),
        steps=5,
        dtype=jnp.dtype("float64"),
    )
    # A label for a module holds for every parameter in it.
    labels = {"embedding": "adamw", "linear": "muon"}
    return optax.multi_transform({"adamw": adamw, "muon": matrix}, labels)


@jax.enable_x64(True)
def main() -> list[float]:
    random = np.random.default_rng(0)
    weights = {
        "embedding.weight": random.normal(size=(100, 32)),
        "linear.weight": random.normal(size=(10, 32)) / 6,
    }
    tokens_BT = random.integers(0, 100, (4, 10))
    targets_BT = random.integers(0, 10, (4, 10))

    graphdef, _ = nnx.split(Model(vocabulary=100, width=32, classes=10))
    params = {
        name.split(".")[0]: {"weight": jnp.asarray(array)}
        for name, array in weights.items()
    }
    optimizer = make_optimizer()

    def mean_loss(params):
        logits_BTV = nnx.merge(graphdef, nnx.State(params))(tokens_BT)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits_BTV, targets_BT
        ).mean()

    @jax.jit
    def train_step(params, opt_state):
        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = optimizer.init(params)
    losses = []
    for _ in range(5):
        params, opt_state, loss = train_step(params, opt_state)
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(*main(), sep="\n")
