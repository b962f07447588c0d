"""Faults of train mode, eval mode and what is measured in it: BatchNorm, Dropout, metrics."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jax_impl import evaluate, losses, step
from jax_impl.losses import Sums
from jax_impl.models import Model
from jax_impl.models.batch_norm import BatchNorm
from parity.faults.fault import Fault, method, swap

bind, norm_forward, loss_sums = Model.bind, BatchNorm.forward, losses.loss_sums


def bound(change: Any) -> Any:
    """The module with something changed after its mode is set: `change(module, train)`."""

    def faulty(self: Model, params: Any, buffers: Any, *, train: bool) -> Any:
        module = bind(self, params, buffers, train=train)
        change(module, train)
        return module

    return method(Model, "bind", faulty)


def never_trained(module: Any, train: bool) -> None:
    module.norm.use_running_average = True


def never_evaluated(module: Any, train: bool) -> None:
    module.norm.use_running_average = False


def dropout_off(module: Any, train: bool) -> None:
    module.dropout.deterministic = True


def dropout_unscaled(module: Any, train: bool) -> None:
    module.dropout.rate = 0.0


def larger_eps(module: Any, train: bool) -> None:
    module.norm.epsilon = 1e-3


def momentum_reversed(module: Any, train: bool) -> None:
    module.norm.momentum = 1 - module.norm.momentum


def biased_variance(self: Any, x_BF: jax.Array) -> jax.Array:
    return nnx.BatchNorm.__call__(self, x_BF)


def statistics_dropped(self: Any, x_BF: jax.Array) -> jax.Array:
    mean, var = self.mean[...], self.var[...]
    y_BF = norm_forward(self, x_BF)
    self.mean[...], self.var[...] = mean, var
    return y_BF


def dropping_evaluation(model: Model, params: Any, buffers: Any, batch: Any, axis_name: Any = None) -> Sums:
    module = model.bind(params, buffers, train=False)
    module.dropout.deterministic = False
    return loss_sums(module(batch["inputs"], key=jax.random.key(0)), batch["targets"])


def mean_of_ratios(eval_step: Any, batches: Any) -> Sums:
    """Each batch's mean counts the same, however many targets it has."""
    found: list[Any] = [evaluate_all(eval_step, [batch]) for batch in batches]
    total = Sums(*(sum(column) for column in zip(*found, strict=True)))
    nats = sum(sums.nats / sums.targets for sums in found) / len(found)
    byte_nats = sum(sums.byte_nats / max(sums.bytes, 1) for sums in found) / len(found)
    return total._replace(nats=nats * total.targets, byte_nats=byte_nats * total.bytes)


evaluate_all = evaluate.evaluate


def all_tokens_counted(logits: jax.Array, targets: jax.Array, target_bytes: Any = None, **kwargs: Any) -> Sums:
    """BOS tokens, which stand for no text, cost nats but no bytes."""
    sums = loss_sums(logits, targets, target_bytes, **kwargs)
    return sums if target_bytes is None else sums._replace(byte_nats=sums.nats)


def padding_counted(logits: jax.Array, targets: jax.Array, *args: Any, **kwargs: Any) -> Sums:
    return loss_sums(logits, targets, *args, **kwargs)._replace(targets=jnp.int32(targets.size))


FAULTS = (
    Fault(
        "never switched to train mode",
        "mlp",
        "activations",
        "BatchNorm normalizes by its running statistics in training",
        bound(never_trained),
    ),
    Fault(
        "never switched to eval mode",
        "mlp",
        "evaluation",
        "BatchNorm normalizes by the batch in evaluation",
        bound(never_evaluated),
    ),
    Fault(
        "dropout off in training",
        "mlp",
        "activations",
        "the mode switch reaches only part of the model",
        bound(dropout_off),
    ),
    Fault(
        "dropout on in evaluation",
        "mlp",
        "evaluation",
        "the mode switch is forgotten before evaluating",
        swap(step.eval_step, dropping_evaluation),
    ),
    Fault("dropout not scaled", "mlp", "activations", "kept units are not divided by 1 - p", bound(dropout_unscaled)),
    Fault("another BatchNorm eps", "mlp", "activations", "Keras' 1e-3 for torch's 1e-5", bound(larger_eps)),
    Fault(
        "biased running variance",
        "mlp",
        "parameters",
        "Flax puts the biased variance into the running one, torch the unbiased",
        method(BatchNorm, "forward", biased_variance),
    ),
    Fault(
        "BatchNorm momentum reversed",
        "mlp",
        "parameters",
        "torch's momentum weighs the new value, Flax's the old",
        bound(momentum_reversed),
    ),
    Fault(
        "running statistics dropped",
        "mlp",
        "parameters",
        "the updated statistics are not taken out of the step",
        method(BatchNorm, "forward", statistics_dropped),
    ),
    Fault(
        "mean of ratios",
        "gpt",
        "evaluation",
        "every batch weighs the same, however many targets it has",
        swap(evaluate_all, mean_of_ratios),
    ),
    Fault(
        "BOS tokens counted in bits per byte",
        "embedding",
        "evaluation",
        "tokens that stand for no text cost nats but no bytes",
        swap(loss_sums, all_tokens_counted),
        flags="--sequence-len 512 --eval-batches 0",
    ),
    Fault(
        "padding counted",
        "linear",
        "evaluation",
        "rows that fill up the last batch are in the denominator",
        swap(loss_sums, padding_counted),
        flags="--eval-batches 0",
    ),
)
