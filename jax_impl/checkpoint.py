"""Checkpoints by orbax: asynchronous, atomic, the last K and the best one kept, every array with a checksum.

A checkpoint holds three items: `weights` (parameters and buffers by name), `training` (optimizer state, step,
random key) and `facts` (JSON: what else the loop must remember, and the checksums).
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jax_impl.models import flatten, unflatten
from jax_impl.step import State
from recipe.cli import read_run_config
from recipe.config import Config
from recipe.errors import RunError, UserError
from recipe.run_dir import CHECKPOINTS, checkpoint_steps

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each phase of each save


def open_manager(run: Path, keep_last: int) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints; it removes what an interrupted save left behind."""
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(keep_last),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics["val_loss"],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager((run / CHECKPOINTS).absolute(), options=options)


@jax.jit
def checksums(tree: Any) -> list[jax.Array]:
    """One uint32 per leaf: the sum of its bits, each word weighted by its place, modulo 2^32.

    Odd weights, so that any flipped bit changes the sum; the place, so that swapped words do too. It is a
    reduction over the array, so it needs no gathering where the array is divided among devices.
    """

    def checksum(x: jax.Array) -> jax.Array:
        bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32).ravel()
        place = jnp.arange(words.size, dtype=jnp.uint32)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return [checksum(leaf) for leaf in jax.tree.leaves(tree)]


def save(manager: ocp.CheckpointManager, state: State, facts: dict[str, Any], metrics: dict | None) -> None:
    """Start saving; the disk work goes on beside training. Raises RunError if this or an earlier save failed."""
    weights, training = split_state(state)
    # On a CPU orbax may read the arrays where they lie, and the next step's donation would overwrite them.
    weights, training = jax.tree.map(jnp.copy, (weights, training))
    step = int(state.step)
    facts = {**facts, "checksums": [int(c) for c in checksums((weights, training))]}
    try:
        manager.check_for_errors()
        manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights),
                training=ocp.args.StandardSave(training),
                facts=ocp.args.JsonSave(facts),
            ),
            metrics=metrics,
        )
    except Exception as error:
        raise save_error(step, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait for the last save. Raises RunError if it failed."""
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except Exception as error:
        raise save_error(None, error) from error


def save_error(step: int | None, error: Exception) -> RunError:
    """Whatever orbax raises, as one line."""
    at = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
    return RunError(
        f"cannot save {at}: {first_line(error)}; earlier checkpoints are intact: make room and pass --resume"
    )


def restore(run: Path, like: State, step: int) -> tuple[State, dict[str, Any]]:
    """State and facts of one checkpoint, the state placed and typed as `like`.

    Raises UserError if it cannot be read, does not fit, or an array does not have the bits that were saved.
    """
    weights, training = split_state(like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (weights, training))
    restored = _read(
        run,
        step,
        weights=ocp.args.StandardRestore(abstract[0]),
        training=ocp.args.StandardRestore(abstract[1]),
        facts=ocp.args.JsonRestore(),
    )
    found = [int(c) for c in checksums((restored["weights"], restored["training"]))]
    if found != restored["facts"].pop("checksums", None):
        raise damaged(run, step, "its arrays do not have the checksums that were saved")
    flat = restored["weights"]
    params = unflatten({name: flat[name] for name in flatten(like.params)})
    buffers = unflatten({name: flat[name] for name in flatten(like.buffers)})
    training = restored["training"]
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), training["opt_state"])
    return State(params, buffers, opt_state, training["step"], training["key"]), restored["facts"]


def load_params(run: Path, step: int | None = None) -> tuple[Config, dict[str, np.ndarray]]:
    """A run's configuration, and parameters and buffers by name, of one step or the newest.

    Raises UserError if there is no such run or checkpoint, or it is damaged.
    """
    config = read_run_config(run)
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(f"{run} has no finished checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; there are {steps}")
    step = steps[-1] if step is None else step
    weights = _read(run, step, weights=ocp.args.StandardRestore())["weights"]
    return config, {name: np.asarray(array) for name, array in weights.items()}


def split_state(state: State) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The items `weights` and `training`. The optimizer state is a list of leaves: its NamedTuples are optax's own."""
    weights = {**flatten(state.params), **flatten(state.buffers)}
    training = {"opt_state": jax.tree.leaves(state.opt_state), "step": state.step, "key": state.key}
    return weights, training


def _read(run: Path, step: int, **items: Any) -> Any:
    folder = (run / CHECKPOINTS / str(step)).absolute()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(folder, ocp.args.Composite(**items))
    except Exception as error:
        raise damaged(run, step, first_line(error)) from error


def damaged(run: Path, step: int, why: str) -> UserError:
    """What to do about a checkpoint that cannot be used."""
    older = [s for s in checkpoint_steps(run) if s < step]
    mend = f"delete that folder to go back to step {older[-1]}" if older else "there is no older one: start a new run"
    return UserError(f"checkpoint {run / CHECKPOINTS / str(step)} cannot be read: {why}; {mend}")


def first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
