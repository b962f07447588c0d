"""Faults that only a run of several steps shows: what is lost from step to step or over a resume."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jax_impl import checkpoint, input, step
from parity.faults.fault import Fault, swap
from parity.probes import Observed

restore, train_step, train_batches = checkpoint.restore, step.train_step, input.train_batches


def losing(change: Any) -> Any:
    """A resume that changes the state it read: `change(state)`."""

    def faulty(*args: Any, **kwargs: Any) -> Any:
        state, facts = restore(*args, **kwargs)
        return change(state), facts

    return swap(restore, faulty)


def zeros(tree: Any, kind: Any) -> Any:
    """The leaves of one kind of number set to zero, but for what the check's own probes hold."""

    def emptied(x: Any) -> Any:
        return x if isinstance(x, Observed) or not jnp.issubdtype(x.dtype, kind) else jnp.zeros_like(x)

    return jax.tree.map(emptied, tree, is_leaf=lambda x: isinstance(x, Observed))


def through_bfloat16(state: Any) -> Any:
    return state._replace(params=jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), state.params))


def rounded(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype.kind == "f" else x, tree)


def with_norm_exchanged(state: Any) -> Any:
    norm = state.params["norm"]
    return state._replace(params={**state.params, "norm": {"weight": norm["bias"], "bias": norm["weight"]}})


def from_the_start(source: Any, start: int, stop: int, *args: Any, **kwargs: Any) -> Iterator[Any]:
    return train_batches(source, 0, stop - start, *args, **kwargs)


def forgetful(config: Any, model: Any, optimizer: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    after, metrics = train_step(config, model, optimizer, state, *args, **kwargs)
    return after._replace(opt_state=zeros(after.opt_state, jnp.floating)), metrics


FAULTS = (
    Fault(
        "resume without moments",
        "embedding",
        "trajectory",
        "the optimizer starts afresh (nanochat 72a7cf2)",
        losing(lambda s: s._replace(opt_state=zeros(s.opt_state, jnp.floating))),
    ),
    Fault(
        "resume without the schedule",
        "linear",
        "trajectory",
        "the optimizers' counts start at zero again",
        losing(lambda s: s._replace(opt_state=zeros(s.opt_state, jnp.integer))),
    ),
    Fault(
        "resume without the step",
        "mlp",
        "trajectory",
        "the run begins again at step 0, and so at the first batch",
        losing(lambda s: s._replace(step=jnp.zeros_like(s.step))),
    ),
    Fault(
        "resume without statistics",
        "mlp",
        "trajectory",
        "BatchNorm's running statistics are not in the checkpoint",
        losing(lambda s: s._replace(buffers=zeros(s.buffers, jnp.floating))),
    ),
    Fault(
        "resume through bfloat16",
        "embedding",
        "trajectory",
        "the checkpoint holds rounded weights",
        losing(through_bfloat16),
    ),
    Fault(
        "resume at the first batch",
        "linear",
        "trajectory",
        "the position in the data is lost (nanochat 2fd0440)",
        swap(train_batches, from_the_start),
    ),
    Fault(
        "resume without the key",
        "mlp",
        "trajectory",
        "the random key is not in the checkpoint: dropout goes on from another",
        losing(lambda s: s._replace(key=s.key + 1)),
    ),
    Fault(
        "resume with moments in bfloat16",
        "embedding",
        "trajectory",
        "the checkpoint holds rounded moments",
        losing(lambda s: s._replace(opt_state=rounded(s.opt_state))),
    ),
    Fault(
        "resume with parameters exchanged",
        "mlp",
        "trajectory",
        "two arrays of one shape are read in another order than they were written",
        losing(with_norm_exchanged),
    ),
    Fault(
        "resume one step back",
        "linear",
        "trajectory",
        "the step before is saved: a batch is trained on twice",
        losing(lambda s: s._replace(step=s.step - 1)),
    ),
    Fault(
        "optimizer state not carried on",
        "embedding",
        "parameters",
        "the step returns it and the loop drops it",
        swap(train_step, forgetful),
    ),
)
