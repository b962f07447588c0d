"""Which parameter gets which optimizer: labels by name, one transformation per label, clipping before all."""

import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jax_impl.muon import muon
from jax_impl.schedule import decay_multiplier, lr_multiplier, muon_momentum
from jax_impl.tree import flatten, unflatten
from twinstep.config import Config, GPTConfig
from twinstep.errors import UserError

# Every parameter's whole name matches one pattern, and every pattern at least one parameter.
LABELS: dict[str, dict[str, str]] = {
    "gpt": {
        r"wte\.weight": "embedding",
        r"h\.\d+\.(attn\.c_[qkv]|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight": "matrix",
        r"lm_head\.weight": "head",
    },
    "linear": {r"linear\.weight": "matrix", r"linear\.bias": "vector"},
    "embedding": {r"embedding\.weight": "embedding", r"linear\.weight": "matrix"},
    "mlp": {r"fc[12]\.weight": "matrix", r"fc2\.bias|norm\.(weight|bias)": "vector"},
}

CLIP_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm; optax.clip_by_global_norm does not


class Group(NamedTuple):
    """What one label's parameters get."""

    algorithm: str  # "muon", "sgd" or "adamw"
    learning_rate: float  # peak rate
    weight_decay: float  # decoupled, multiplied by the rate


def label_parameters(config: Config, names: list[str]) -> dict[str, str]:
    """Name -> label. Raises UserError unless each name matches one pattern and each pattern some name."""
    patterns = LABELS[config.model_name]
    labels = {}
    for name in names:
        found = [label for pattern, label in patterns.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise UserError(f"parameter {name!r} matches {len(found)} optimizer patterns; it must match one")
        labels[name] = found[0]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise UserError(f"optimizer pattern {pattern!r} matches no parameter")
    return labels


def optimizer_groups(config: Config) -> dict[str, Group]:
    """Label -> Group. Under `--optimizer adamw` all labels get the one AdamW; vectors are never decayed."""
    o = config.optimizer
    if o.optimizer == "adamw":
        weights = Group("adamw", o.adamw_lr, o.weight_decay)
        groups = {"embedding": weights, "matrix": weights, "head": weights}
    else:
        # Upstream tuned the rates of embedding and head at width 768; they fall as its root.
        width_scale = (config.model.width / 768) ** -0.5 if isinstance(config.model, GPTConfig) else 1.0
        groups = {
            "embedding": Group("adamw", o.embedding_lr * width_scale, o.weight_decay),
            "matrix": Group(o.matrix_optimizer, o.matrix_lr, o.matrix_weight_decay),
            "head": Group("adamw", o.head_lr * width_scale, o.weight_decay),
        }
    return {**groups, "vector": Group("adamw", o.adamw_lr, 0.0)}


def clip_by_global_norm(grads: Any, max_norm: float) -> tuple[Any, jax.Array]:
    """All gradients times min(1, max_norm / (norm + 1e-6)), and the norm before clipping. max_norm 0: no clipping.

    That is torch.nn.utils.clip_grad_norm_.
    """
    limit = max_norm if max_norm > 0 else float("inf")
    norm = optax.tree.norm(grads)
    factor = jnp.minimum(1.0, limit / (norm + CLIP_EPS))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), norm


def make_optimizer(
    config: Config, params: Any, stacked: bool = False, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """One transformation per label, each for its own parameters (`optax.multi_transform`).

    params: read for its names only. stacked, mesh: for Muon's matrices, see `muon.orthogonalize_tree`.
    """
    labels = label_parameters(config, list(flatten(params)))
    transforms = {
        label: make_transform(config, group, stacked, mesh)
        for label, group in optimizer_groups(config).items()
        if label in labels.values()
    }
    return optax.multi_transform(transforms, unflatten(labels))


def make_transform(
    config: Config, group: Group, stacked: bool = False, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """One group's optimizer with its schedules."""
    o, steps = config.optimizer, config.train.steps
    learning_rate = partial(learning_rate_at, config, group)

    def weight_decay(count: jax.Array) -> jax.Array:
        return group.weight_decay * decay_multiplier(o, steps, count)

    match group.algorithm:
        case "muon":
            dtype, iterations = newton_schulz_dtype(config), o.newton_schulz_steps
            momentum = partial(muon_momentum, o)
            return muon(
                learning_rate, momentum, weight_decay, steps=iterations, dtype=dtype, stacked=stacked, mesh=mesh
            )
        case "sgd":
            return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))
        case "adamw":
            return optax.adamw(learning_rate, o.beta1, o.beta2, o.eps, weight_decay=weight_decay)
    raise AssertionError(group.algorithm)


def learning_rate_at(config: Config, group: Group, count: jax.Array) -> jax.Array:
    """A group's learning rate at its update number `count`, from 0."""
    return group.learning_rate * lr_multiplier(config.optimizer, config.train.steps, count)


def logged_learning_rate(config: Config, opt_state: Any) -> jax.Array:
    """The matrices' learning rate in the update that follows this state: their own schedule at their own count."""
    matrix = optax.tree.get(opt_state, "inner_states")["matrix"]
    _, count = optax.tree.get_all_with_path(matrix, "count")[0]
    return learning_rate_at(config, optimizer_groups(config)["matrix"], count)


def group_norms(config: Config, params: Any, updates: Any) -> dict[str, jax.Array]:
    """`param_norm/LABEL` and `update_norm/LABEL`: the L2 norm of all of a label's parameters, and of what is added.

    params: as they are before the update, of which `param_norm` is. updates: learning rate and weight decay included.
    """
    labels = label_parameters(config, list(flatten(params)))
    flat_params, flat_updates = flatten(params), flatten(updates)
    norms = {}
    for label in sorted(set(labels.values())):
        names = [name for name in labels if labels[name] == label]
        update_norm = optax.tree.norm([flat_updates[name] for name in names])
        leaves = [flat_params[name] for name in names]
        if jax.default_backend() == "cpu" and jax.process_count() > 1:
            # One, but it makes the second norm wait for the first: on sharded parameters it is a collective, and one
            # that depends on nothing could run amid those of the backward pass (see `parallel.with_signal`). Elsewhere
            # it must not wait: the old parameters would be copied, since the new ones take their place before.
            one = jnp.where(jnp.isnan(update_norm), update_norm, 1)
            leaves = [one * leaf for leaf in leaves]
        norms[f"param_norm/{label}"] = optax.tree.norm(leaves)
        norms[f"update_norm/{label}"] = update_norm
    return norms


def newton_schulz_dtype(config: Config) -> jnp.dtype:
    """The dtype of the orthogonalization; see `OptimizerConfig.newton_schulz_dtype`."""
    if config.optimizer.newton_schulz_dtype != "auto":
        return jnp.dtype(config.optimizer.newton_schulz_dtype)
    if config.train.dtype == "float64":
        return jnp.dtype("float64")
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
