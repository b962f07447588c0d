"""Faults of AdamW, and of which parameters it gets."""

from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from jax_impl import optimizer
from jax_impl.schedule import decay_multiplier, lr_multiplier
from parity.faults.fault import Fault, swap

make_transform = optimizer.make_transform
apply_updates = optax.apply_updates


def adam_chain(parts: Any) -> Any:
    """Another AdamW: `parts(o, rate, decay)` is the list of transformations of an AdamW group."""

    def faulty(config: Any, group: Any, *args: Any) -> optax.GradientTransformation:
        if group.algorithm != "adamw":
            return make_transform(config, group, *args)
        o, steps = config.optimizer, config.train.steps

        return optax.chain(
            *parts(
                o,
                lambda count: group.learning_rate * lr_multiplier(o, steps, count),
                lambda count: group.weight_decay * decay_multiplier(o, steps, count),
            )
        )

    return swap(make_transform, faulty)


def adam(o: Any, direction: Any) -> optax.GradientTransformation:
    """Adam whose step is `direction(m, v, t)` from the uncorrected moments after t steps."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        mu = jax.tree.map(lambda m, g: o.beta1 * m + (1 - o.beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: o.beta2 * v + (1 - o.beta2) * g**2, state.nu, grads)
        count = state.count + 1
        updates = jax.tree.map(lambda m, v: direction(m, v, count.astype(m.dtype)), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def with_direction(direction: Any) -> Any:
    return adam_chain(
        lambda o, rate, decay: [
            adam(o, lambda m, v, t: direction(o, m, v, t)),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(rate),
        ]
    )


def eps_before_correction(o: Any, m: Any, v: Any, t: Any) -> Any:
    return m / (1 - o.beta1**t) / ((jnp.sqrt(v) + o.eps) / jnp.sqrt(1 - o.beta2**t))


def eps_in_the_root(o: Any, m: Any, v: Any, t: Any) -> Any:
    return m / (1 - o.beta1**t) / jnp.sqrt(v / (1 - o.beta2**t) + o.eps)


def uncorrected(o: Any, m: Any, v: Any, t: Any) -> Any:
    return m / (jnp.sqrt(v) + o.eps)


def l2(o: Any, rate: Any, decay: Any) -> list[optax.GradientTransformation]:
    return [
        optax.add_decayed_weights(decay),
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
        optax.scale_by_learning_rate(rate),
    ]


def decay_without_rate(o: Any, rate: Any, decay: Any) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
        optax.scale_by_learning_rate(rate),
        optax.add_decayed_weights(lambda count: -decay(count)),
    ]


def low_moments(o: Any, rate: Any, decay: Any) -> list[optax.GradientTransformation]:
    return [
        optax.scale_by_adam(o.beta1, o.beta2, o.eps, mu_dtype=jnp.bfloat16),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    ]


def other_betas(config: Any, *args: Any) -> optax.GradientTransformation:
    return make_transform(replace(config, optimizer=replace(config.optimizer, beta1=0.9, beta2=0.999)), *args)


def relabelled(name: str, label: str) -> Any:
    label_parameters = optimizer.label_parameters
    return swap(label_parameters, lambda *args: {**label_parameters(*args), name: label})


def one_frozen(name: str) -> Any:
    make_optimizer = optimizer.make_optimizer

    def faulty(config: Any, params: Any, *args: Any) -> optax.GradientTransformation:
        frozen = optimizer.unflatten({leaf: leaf == name for leaf in optimizer.flatten(params)})
        return optax.chain(make_optimizer(config, params, *args), optax.masked(optax.set_to_zero(), frozen))

    return swap(make_optimizer, faulty)


def in_bfloat16(params: Any, updates: Any) -> Any:
    return jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), apply_updates(params, updates))


def applying(apply: Any) -> Any:
    return lambda: mock.patch.object(optax, "apply_updates", apply)


FAULTS = (
    Fault(
        "eps before bias correction",
        "embedding",
        "update",
        "eps is added before the bias correction, which scales it too (nanochat issue 304)",
        with_direction(eps_before_correction),
    ),
    Fault("eps in the root", "embedding", "update", "sqrt(v + eps): optax's eps_root", with_direction(eps_in_the_root)),
    Fault(
        "no bias correction",
        "linear",
        "update",
        "the moments start at zero and are not corrected for it",
        with_direction(uncorrected),
    ),
    Fault(
        "L2 for decoupled decay",
        "embedding",
        "update",
        "the decay is added to the gradient: Adam for AdamW (optax issue 417)",
        adam_chain(l2),
    ),
    Fault(
        "decay without the rate",
        "embedding",
        "update",
        "parameters shrink by the decay itself, not by rate times decay",
        adam_chain(decay_without_rate),
    ),
    Fault(
        "first moment in bfloat16",
        "embedding",
        "update",
        "mu_dtype=bfloat16 (torchao PR 1124)",
        adam_chain(low_moments),
    ),
    Fault("default betas", "mlp", "update", "0.9 and 0.999", swap(make_transform, other_betas)),
    Fault(
        "embedding given to Muon",
        "gpt",
        "schedule",
        "the token embedding among the matrices: its own group is gone (optax issue 1271)",
        relabelled("wte.weight", "matrix"),
    ),
    Fault(
        "matrix given to AdamW",
        "gpt",
        "update",
        "one block matrix among the embeddings (maxtext PR 4843)",
        relabelled("h.0.mlp.c_fc.weight", "embedding"),
    ),
    Fault("parameter frozen", "mlp", "update", "one leaf is never updated", one_frozen("fc2.bias")),
    Fault(
        "parameters updated twice",
        "linear",
        "update",
        "the updates are applied two times",
        applying(lambda params, updates: apply_updates(apply_updates(params, updates), updates)),
    ),
    Fault(
        "parameters rounded to bfloat16",
        "embedding",
        "update",
        "each step's new parameters pass through bfloat16",
        applying(in_bfloat16),
    ),
)
