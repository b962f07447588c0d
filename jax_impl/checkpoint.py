"""Checkpoints by orbax: asynchronous, atomic, the last --keep-last and the best one kept, every array with a checksum.

A checkpoint holds three items: `weights` (parameters and buffers by name), `training` (optimizer state, step,
random key) and `facts` (JSON: what else the loop must remember, see `twinstep.progress`, and the checksums).
"""

import contextlib
import gc
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_impl import processes
from jax_impl.checksum import inspect_arrays, numpy_checksum
from jax_impl.step import State
from jax_impl.tree import flatten, unflatten
from twinstep.cli import read_run_config
from twinstep.config import Config
from twinstep.errors import RunError, UserError, first_line
from twinstep.progress import Facts, check_config, check_sums, seal, unseal
from twinstep.run_dir import CHECKPOINTS, cannot_save, choose_step, damaged

FACTS = "facts/metadata"  # where orbax's JsonSave puts them
OTHERS = "facts.json"  # only a checkpoint of torch_ref has it

Result = TypeVar("Result")

# orbax reports each phase of each save, and logs the traceback of what it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def open_manager(run: Path) -> Iterator[ocp.CheckpointManager]:
    """The manager of a run's checkpoints. On leaving, waits for the last save; RunError if it failed.

    If another process has died it does not wait: that process's part of the last save will never be written.
    """
    manager = ocp.CheckpointManager((run / CHECKPOINTS).absolute())
    waits = True
    try:
        yield manager
        finish(manager)
    except Exception as error:
        waits = not processes.has_lost(error)
        raise
    finally:
        if waits:
            with contextlib.suppress(Exception):  # the same failure again
                manager.close()


def save(manager: ocp.CheckpointManager, state: State, facts: Facts) -> None:
    """Start saving; orbax writes the files while training goes on.

    The next step may donate the state at once: orbax has copied the arrays to the host before it returns. On a CPU it
    writes them without a copy, and XLA does not reuse a buffer that NumPy still holds.

    Raises RunError if this or the previous save failed, or if a number is not finite: training cannot go on from such
    a checkpoint, and it would push an older, usable one out of --keep-last.
    """
    step = int(state.step)
    weights, training = split_state(state)
    arrays = name_arrays(weights, training)
    found, finite = inspect_arrays(arrays)
    for name in arrays:
        if not finite[name]:
            raise RunError(f"step {step}: {name} is not finite, so it is not saved; earlier checkpoints are intact")
    sums = {name: int(found[name]) for name in arrays}
    facts = seal({**facts, "checksums": sums})
    try:
        manager.check_for_errors()
        manager.save(
            step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(weights),
                training=ocp.args.StandardSave(training),
                facts=ocp.args.JsonSave(facts),
            ),
        )
    except Exception as error:
        raise cannot_save(step, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait for the last save. Raises RunError if it failed."""
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except Exception as error:
        raise cannot_save(None, error) from error


def restore(run: Path, config: Config, like: State, step: int) -> tuple[State, Facts]:
    """State and facts of one checkpoint, the state with the shardings and dtypes of `like`.

    Raises UserError if it cannot be read, does not fit, belongs to another configuration, or an array does not have
    the bits that were saved.
    """
    facts = read_facts(run, step)
    check_config(facts, config, run)
    weights, training = read_items(run, step, split_state(like), facts)
    params = unflatten({name: weights[name] for name in flatten(like.params)})
    buffers = unflatten({name: weights[name] for name in flatten(like.buffers)})
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), training["opt_state"])
    del facts["checksums"]
    return State(params, buffers, opt_state, training["step"], training["key"]), facts


def load_params(run: Path, step: int | None = None) -> tuple[Config, dict[str, np.ndarray]]:
    """A run's configuration, and parameters and buffers by name, of one step or the newest.

    They are NumPy arrays, whatever devices they were saved from. Raises UserError if there is no such run or
    checkpoint, or it is damaged.
    """
    config = read_run_config(run)
    step = choose_step(run, step)
    facts = read_facts(run, step)
    check_config(facts, config, run)
    return config, read_weights(run, step, facts)


def read_facts(run: Path, step: int) -> Facts:
    """The facts of a checkpoint. Raises UserError if they are not there or not those that were saved.

    The file that orbax's JsonSave wrote is read directly: orbax's own reader waits until all processes read.
    """
    folder = run / CHECKPOINTS / str(step)
    if (folder / OTHERS).exists():
        raise UserError(f"{run} is a run of torch_ref; python -m parity convert {run} OUT_DIR makes one of jax_impl")
    try:
        return unseal(json.loads((folder / FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise damaged(run, step, f"{FACTS}: {error}") from error


def read_weights(run: Path, step: int, facts: Facts) -> dict[str, np.ndarray]:
    """Parameters and buffers by name. Raises UserError if they are not those that were saved."""

    def read() -> dict[str, np.ndarray]:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            folder = (run / CHECKPOINTS / str(step) / "weights").absolute()
            names = reader.metadata(folder).item_metadata.tree
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            return reader.restore(folder, ocp.args.PyTreeRestore(restore_args=as_numpy))

    weights = attempt(run, step, read)
    sums = {name: numpy_checksum(array) for name, array in weights.items()}
    check_sums(facts, sums, run, step)
    return weights


def read_items(
    run: Path, step: int, like: tuple[Any, Any], facts: Facts
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The items `weights` and `training`, sharded and typed as `like`. Raises UserError as `read_weights` does."""
    weights, training = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = ocp.args.Composite(weights=ocp.args.StandardRestore(weights), training=ocp.args.StandardRestore(training))

    def read() -> Any:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore((run / CHECKPOINTS / str(step)).absolute(), items)

    restored = attempt(run, step, read)
    weights, training = restored["weights"], restored["training"]
    found, _ = inspect_arrays(name_arrays(weights, training))
    sums = {name: int(checksum) for name, checksum in found.items()}
    check_sums(facts, sums, run, step)
    return weights, training


def attempt(run: Path, step: int, read: Callable[[], Result]) -> Result:
    """What `read` returns; whatever orbax raises becomes a UserError of one line.

    Where several arrays cannot be read, orbax raises for one of them; the pending reads of the others then print
    warnings to standard error, which are suppressed. So is the chain of causes, which would keep these reads alive.
    """
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                return read()
            except Exception as error:
                why = first_line(error)
            time.sleep(0.1)  # for the pending reads
            gc.collect()
    finally:
        logging.disable(logging.NOTSET)
    raise damaged(run, step, why)


def split_state(state: State) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The items `weights` and `training`. The optimizer state is a list of leaves: its NamedTuples are optax's own."""
    weights = {**flatten(state.params), **flatten(state.buffers)}
    training = {"opt_state": jax.tree.leaves(state.opt_state), "step": state.step, "key": state.key}
    return weights, training


def name_arrays(weights: dict[str, jax.Array], training: dict[str, Any]) -> dict[str, jax.Array]:
    """All arrays of a checkpoint by name, those of `training` by their path."""
    paths = jax.tree_util.tree_leaves_with_path(training)
    return weights | {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
