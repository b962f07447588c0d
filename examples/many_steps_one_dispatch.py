"""Train the linear classifier in one dispatch: `scan_train_steps`.

Calling a step this small takes longer than the step: JAX dispatches once,
and XLA loops. The steps are those of `python -m jax_impl.train linear`.
"""

from functools import partial

import jax
import numpy as np

from jax_impl import parallel
from jax_impl.evaluate import evaluate, metrics
from jax_impl.input import eval_batches, train_batches
from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import (
    eval_step,
    init_state,
    scan_train_steps,
    train_step,
)
from jax_impl.tree import flatten
from twinstep.data import load_data
from twinstep.init import initial_weights
from twinstep.presets import DEFAULTS
from twinstep.resolve import fill_in


def main() -> tuple[np.ndarray, float]:
    """The loss of every step, and the accuracy on held-out digits."""
    config = DEFAULTS["linear"]
    data = load_data(config)
    config = fill_in(config, data)
    parallel.set_precision(config)
    model = make_model(config)
    optimizer = make_optimizer(config, model.params)
    shapes = {name: s.shape for name, s in flatten(model.params).items()}
    weights = initial_weights(shapes, config.train.seed)
    state = init_state(model, optimizer, weights, config.train.seed)

    batches = list(train_batches(data.train, 0, config.train.steps))
    stacked = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    step = partial(train_step, config, model, optimizer)
    run = jax.jit(partial(scan_train_steps, step), donate_argnums=0)
    state, found = run(state, stacked)

    evaluation = jax.jit(partial(eval_step, model))
    held_out = evaluate(
        lambda batch: evaluation(state.params, state.buffers, batch),
        eval_batches(data.validation, 0),
    )
    return np.asarray(found["loss"]), metrics(held_out)["val_accuracy"]


if __name__ == "__main__":
    losses, accuracy = main()
    print(f"{len(losses)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    print(f"accuracy {accuracy:.4f}")
