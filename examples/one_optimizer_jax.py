"""The smallest JAX loop: one linear layer, one AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


@jax.enable_x64(True)
def main() -> list[float]:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(2, 10)) / 3, np.zeros(2)
    inputs_BF, targets_B = (
        random.normal(size=(4, 10)),
        random.integers(0, 2, 4),
    )

    params = {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    optimizer = optax.adamw(0.01, weight_decay=0.01)

    def mean_loss(params):
        logits_BV = inputs_BF @ params["weight"].T + params["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(
            logits_BV, targets_B
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
