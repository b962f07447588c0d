"""Faults of the optimizers that the usual configurations do not take: one AdamW for all, and SGD for the matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jax_impl import optimizer
from jax_impl.optimizer import Group
from jax_impl.schedule import decay_multiplier, lr_multiplier
from parity.faults.adamw import adam, adam_chain
from parity.faults.fault import Fault, swap
from parity.faults.schedule import altered_groups
from twinstep.config import Config

make_transform = optimizer.make_transform

ONE_ADAMW, SGD = "--optimizer adamw", "--matrix-optimizer sgd"


def sgd_with(update: Any) -> Any:
    """SGD whose update is `update(gradient, parameter, rate, decay)`."""

    def faulty(config: Any, group: Any, *args: Any) -> optax.GradientTransformation:
        if group.algorithm != "sgd":
            return make_transform(config, group, *args)
        o, steps = config.optimizer, config.train.steps

        def apply(grads: Any, state: Any, params: Any = None) -> Any:
            rate = group.learning_rate * lr_multiplier(o, steps, state.count)
            decay = group.weight_decay * decay_multiplier(o, steps, state.count)
            updates = jax.tree.map(lambda g, p: update(g, p, rate, decay), grads, params)
            return updates, state._replace(count=state.count + 1)

        return optax.GradientTransformation(lambda params: optax.ScaleByScheduleState(jnp.int32(0)), apply)

    return swap(make_transform, faulty)


def with_own_rates(config: Config, label: str, group: Group) -> Group:
    rates = {"embedding": config.optimizer.embedding_lr, "matrix": config.optimizer.matrix_lr}
    return group._replace(learning_rate=rates.get(label, group.learning_rate))


def with_adamw_rate(config: Config, label: str, group: Group) -> Group:
    return group._replace(learning_rate=config.optimizer.adamw_lr) if label == "matrix" else group


def matrix_rate_logged(config: Config, opt_state: Any) -> jax.Array:
    rate = optimizer.optimizer_groups(config)["matrix"].learning_rate
    return config.optimizer.matrix_lr / rate * logged_learning_rate(config, opt_state)


logged_learning_rate = optimizer.logged_learning_rate


def nesterov(o: Any, rate: Any, decay: Any) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_adam(o.beta1, o.beta2, o.eps, nesterov=True),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    ]


def decay_at_the_peak(o: Any, rate: Any, decay: Any) -> list[optax.GradientTransformation]:
    """The decay's rate is the peak's: its own schedule is divided by the learning rate's."""
    peak = o.adamw_lr
    return [
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
        optax.add_decayed_weights(lambda count: decay(count) * peak / rate(count)),
        optax.scale_by_learning_rate(rate),
    ]


def second_uncorrected(o: Any, rate: Any, decay: Any) -> list[optax.GradientTransformation]:
    return [
        adam(o, lambda m, v, t: m / (1 - o.beta1**t) / (jnp.sqrt(v) + o.eps)),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    ]


FAULTS = (
    Fault(
        "each group its own rate",
        "embedding",
        "schedule",
        "one AdamW was asked for, and the rates are those of two optimizers",
        altered_groups(with_own_rates),
        flags=ONE_ADAMW,
    ),
    Fault(
        "another group's rate logged",
        "linear",
        "schedule",
        "Muon's rate is logged where AdamW trains the matrices",
        swap(logged_learning_rate, matrix_rate_logged),
        flags=ONE_ADAMW,
    ),
    Fault(
        "NAdam for Adam",
        "embedding",
        "update",
        "`nesterov=True`, as optax.contrib.muon has it for what is no matrix",
        adam_chain(nesterov),
        flags=ONE_ADAMW,
    ),
    Fault(
        "decay at the peak rate",
        "linear",
        "update",
        "the decay is multiplied by the peak rate, not by the step's",
        adam_chain(decay_at_the_peak),
        flags=ONE_ADAMW,
    ),
    Fault(
        "second moment not corrected",
        "mlp",
        "update",
        "only the first moment's bias is corrected",
        adam_chain(second_uncorrected),
        flags=ONE_ADAMW,
    ),
    Fault(
        "SGD at AdamW's rate",
        "embedding",
        "schedule",
        "the matrices' rate is not passed to their optimizer",
        altered_groups(with_adamw_rate),
        flags=SGD,
    ),
    Fault(
        "SGD's decay without the rate",
        "embedding",
        "update",
        "matrices shrink by the decay itself",
        sgd_with(lambda g, p, rate, decay: -rate * g - decay * p),
        flags=SGD,
    ),
    Fault(
        "SGD without decay",
        "linear",
        "update",
        "optax.sgd has none",
        sgd_with(lambda g, p, rate, decay: -rate * g),
        flags=SGD,
    ),
    Fault(
        "SGD of the sign",
        "embedding",
        "update",
        "signSGD, the limit of Adam without its averages",
        sgd_with(lambda g, p, rate, decay: -rate * (jnp.sign(g) + decay * p)),
        flags=SGD,
    ),
    Fault(
        "SGD with momentum",
        "embedding",
        "trajectory",
        "a momentum of 0.9, of which the reference has none to begin a step from",
        swap(
            make_transform,
            lambda config, group, *args: (
                optax.chain(optax.trace(0.9), make_transform(config, group, *args))
                if group.algorithm == "sgd"
                else make_transform(config, group, *args)
            ),
        ),
        flags=SGD,
    ),
)
