"""Faults of the evaluation, and of dropout in training."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl import evaluate, input, losses, step
from jax_impl.losses import Sums
from jax_impl.models.mlp import Dropout
from parity.faults.data import altered_batches
from parity.faults.fault import Fault, method, swap
from parity.faults.rewritten_steps import stepping

evaluate_all, metrics, eval_batches, loss_sums = (
    evaluate.evaluate,
    evaluate.metrics,
    input.eval_batches,
    losses.loss_sums,
)

train_step = step.train_step

BOS, BY_KEY = "--sequence-len 512 --eval-batches 0", "--no-shared-dropout"


def in_float32(eval_step: Any, batches: Any) -> Sums:
    totals: Any = np.zeros(len(Sums._fields), np.float32)
    for batch in batches:
        totals += np.array([np.asarray(value).item() for value in eval_step(batch)], np.float32)
    return Sums(*totals.tolist())


def in_nats(sums: Any) -> dict[str, float]:
    found = metrics(sums)
    return {**found, "val_bpb": found["val_bpb"] * math.log(2)} if "val_bpb" in found else found


def per_token(sums: Any) -> dict[str, float]:
    """Bits per token by the bytes per token, with the nats of tokens that stand for no text."""
    found = metrics(sums)
    return {**found, "val_bpb": sums.nats / (math.log(2) * sums.bytes)} if "val_bpb" in found else found


def first_batches(source: Any, limit: int, shard: int = 0, shards: int = 1) -> Iterator[Any]:
    for number in range(min(limit or source.batches, source.batches)):
        yield source.batch(number, shard, shards)


def all_bytes(logits: jax.Array, targets: jax.Array, target_bytes: Any = None, **kwargs: Any) -> Sums:
    """A token that stands for no text counts as one byte."""
    counted = None if target_bytes is None else jnp.maximum(target_bytes, 1)
    return loss_sums(logits, targets, counted, **kwargs)


def dropping(kept: Any) -> Any:
    """Another dropout in train mode: `kept(x, mask, rate)`."""

    def forward(self: Any, x_BD: jax.Array, mask_BD: Any = None, key: Any = None) -> jax.Array:
        return x_BD if mask_BD is None or self.deterministic else kept(x_BD, mask_BD, self.rate)

    return method(Dropout, "forward", forward)


def one_key(model: Any, params: Any, buffers: Any, batch: Any, key: Any) -> Any:
    """Each micro-step draws by the first one's key."""
    found = []
    for number in range(batch["targets"].shape[0]):
        micro_batch = jax.tree.map(lambda x, n=number: x[n], batch)
        sums, buffers, grads = step.micro_step(model, params, buffers, micro_batch, jax.random.fold_in(key, 0))
        found.append((sums, grads))
    sums, grads = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *found)
    return sums, buffers, grads


def same_key(config: Any, model: Any, optimizer: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    """Each step draws by the first one's key."""
    after, metrics = train_step(config, model, optimizer, state._replace(step=0 * state.step), *args, **kwargs)
    return after._replace(step=state.step + 1), metrics


def first_mask(batch: Any) -> Any:
    mask = batch["dropout_mask"]
    return {"dropout_mask": np.broadcast_to(mask[:1], mask.shape)}


FAULTS = (
    Fault(
        "evaluation summed in float32",
        "linear",
        "evaluation",
        "the sums over batches are kept in single precision",
        swap(evaluate_all, in_float32),
    ),
    Fault("nats per byte", "embedding", "evaluation", "bits per byte without log 2", swap(metrics, in_nats)),
    Fault(
        "BOS tokens in the nats per byte",
        "gpt",
        "evaluation",
        "the loss of all tokens over the bytes of text",
        swap(metrics, per_token),
        flags=BOS,
    ),
    Fault(
        "BOS tokens of one byte",
        "embedding",
        "evaluation",
        "a special token counts as one byte of text (nanochat autoresearch issue 384)",
        swap(loss_sums, all_bytes),
        flags=BOS,
    ),
    Fault(
        "first batches evaluated",
        "linear",
        "evaluation",
        "the validation batches are the first ones, not spread over the set",
        swap(eval_batches, first_batches),
    ),
    Fault(
        "dropout mask inverted",
        "mlp",
        "activations",
        "what should be kept is dropped",
        dropping(lambda x, mask, rate: jnp.where(mask, 0, x / (1 - rate))),
    ),
    Fault(
        "dropout divided by its rate",
        "mlp",
        "activations",
        "the share that is dropped for the share that is kept",
        dropping(lambda x, mask, rate: jnp.where(mask, x / rate, 0)),
    ),
    Fault(
        "one dropout mask for all micro-steps",
        "mlp",
        "data",
        "the mask of the first micro-step serves the whole step",
        altered_batches(first_mask),
    ),
    Fault(
        "one dropout key for all micro-steps",
        "mlp",
        "loss",
        "the key is not folded with the micro-step's number",
        stepping(one_key),
        flags=BY_KEY,
    ),
    Fault(
        "one dropout key for all steps",
        "mlp",
        "loss",
        "the key is not folded with the step's number",
        swap(train_step, same_key),
        flags=BY_KEY,
    ),
)
