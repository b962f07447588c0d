"""Checkpoints by orbax: asynchronous, atomic, the last K and the best one kept, every array with a checksum.

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
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jax_impl import processes
from jax_impl.step import State
from jax_impl.tree import flatten, unflatten
from twinstep import run_dir
from twinstep.cli import read_run_config
from twinstep.config import Config
from twinstep.errors import RunError, UserError
from twinstep.progress import Facts, check_config, seal, unseal
from twinstep.run_dir import CHECKPOINTS, checkpoint_steps

Result = TypeVar("Result")

# orbax reports each phase of each save, and logs the traceback of what it raises as well.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def open_manager(run: Path) -> Iterator[ocp.CheckpointManager]:
    """The manager of a run's checkpoints. On leaving, waits for the last save; RunError if it failed.

    When another process has been lost nothing is waited for: its part of the last save will not come.
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
    """Start saving; the disk work goes on beside training.

    The next step may take the state over at once: orbax has the arrays on the host before it returns, and on a CPU,
    where it writes them from where they lie, XLA gives a buffer that NumPy holds to no other array.

    Raises RunError if this or the save before failed, or if a number is not finite: what could not be trained from
    must not take the place of what can.
    """
    weights, training = split_state(state)
    step = int(state.step)
    sums, finite = inspect_arrays((weights, training))
    names = array_names(weights, training)
    for name, is_finite in zip(names, finite, strict=True):
        if not is_finite:
            raise RunError(f"step {step}: {name} is not finite, so it is not saved; earlier checkpoints are intact")
    facts = seal({**facts, "checksums": dict(zip(names, map(int, sums), strict=True))})
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
        raise save_error(step, error) from error


def finish(manager: ocp.CheckpointManager) -> None:
    """Wait for the last save. Raises RunError if it failed."""
    try:
        manager.wait_until_finished()
        manager.check_for_errors()
    except Exception as error:
        raise save_error(None, error) from error


def remove_old(run: Path, keep_last: int) -> None:
    """Keep the newest `keep_last` whole checkpoints and the best of which the newest of them knows."""
    steps = checkpoint_steps(run)
    if len(steps) > keep_last:
        run_dir.remove_old(run, keep_last, read_facts(run, steps[-1])["best_step"])


def restore(run: Path, config: Config, like: State, step: int) -> tuple[State, Facts]:
    """State and facts of one checkpoint, the state placed and typed as `like`.

    Raises UserError if it cannot be read, does not fit, belongs to another configuration, or an array does not have
    the bits that were saved.
    """
    facts = read_facts(run, step)
    check_config(facts, config, run)
    weights, training = split_state(like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (weights, training))
    restored = _read(
        run,
        step,
        weights=ocp.args.StandardRestore(abstract[0]),
        training=ocp.args.StandardRestore(abstract[1]),
    )
    weights, training = restored["weights"], restored["training"]
    sums, _ = inspect_arrays((weights, training))
    check_sums(run, step, dict(zip(array_names(weights, training), map(int, sums), strict=True)), facts)
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
    steps = checkpoint_steps(run)
    if not steps:
        raise UserError(f"{run} has no finished checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; there are {steps}")
    step = steps[-1] if step is None else step
    facts = read_facts(run, step)
    check_config(facts, config, run)

    def read() -> dict[str, np.ndarray]:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            folder = (run / CHECKPOINTS / str(step) / "weights").absolute()
            names = reader.metadata(folder).item_metadata.tree
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
            return reader.restore(folder, ocp.args.PyTreeRestore(restore_args=as_numpy))

    weights = attempt(run, step, read)
    check_sums(run, step, {name: numpy_checksum(array) for name, array in weights.items()}, facts)
    return config, weights


def read_facts(run: Path, step: int) -> Facts:
    """The facts of a checkpoint. Raises UserError if they are not there or not those that were saved.

    The file that orbax's JsonSave wrote is read as it is: orbax would wait for all processes to read with it.
    """
    if (run / CHECKPOINTS / str(step) / "facts.json").exists():
        raise UserError(f"{run} is a run of torch_ref; python -m parity convert {run} OUT_DIR makes one of jax_impl")
    path = run / CHECKPOINTS / str(step) / "facts" / "metadata"
    facts = attempt(run, step, lambda: json.loads(path.read_text(encoding="utf-8")))
    try:
        return unseal(facts)
    except ValueError as error:
        raise damaged(run, step, str(error)) from error


def split_state(state: State) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The items `weights` and `training`. The optimizer state is a list of leaves: its NamedTuples are optax's own."""
    weights = {**flatten(state.params), **flatten(state.buffers)}
    training = {"opt_state": jax.tree.leaves(state.opt_state), "step": state.step, "key": state.key}
    return weights, training


def array_names(weights: dict[str, jax.Array], training: dict[str, Any]) -> list[str]:
    """The names of all arrays of a checkpoint, in the order of `jax.tree.leaves((weights, training))`."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(training)]
    return [*sorted(weights), *(jax.tree_util.keystr(path, simple=True, separator=".") for path in paths)]


@jax.jit
def inspect_arrays(tree: Any) -> tuple[list[jax.Array], list[jax.Array]]:
    """For each leaf its checksum, uint32, and whether all its numbers are finite.

    The checksum is the sum of the array's bits, each word weighted by its place, modulo 2^32: odd weights, so that
    any flipped bit changes the sum; the place, so that swapped words do too. It is a reduction over the array in its
    own shape, so that nothing is gathered where the array is divided among devices, by whichever dimension.
    """

    def checksum(x: jax.Array) -> jax.Array:
        bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
        place = jnp.zeros(words.shape, jnp.uint32)
        for dim, size in enumerate(words.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    leaves = jax.tree.leaves(tree)
    return [checksum(leaf) for leaf in leaves], [jnp.isfinite(leaf).all() for leaf in leaves]


def numpy_checksum(array: np.ndarray) -> int:
    """The checksum of `inspect_arrays`."""
    bits = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(array).ravel().view(bits).astype(np.uint32)
    place = np.arange(words.size, dtype=np.uint32)
    return int(np.sum(words * (2 * place + 1), dtype=np.uint32))


def check_sums(run: Path, step: int, found: dict[str, int], facts: Facts) -> None:
    """Raises UserError naming the first array whose bits are not those that were saved."""
    for name, checksum in found.items():
        if facts.get("checksums", {}).get(name) != checksum:
            raise damaged(run, step, f"{name} does not have the bits that were saved")


def _read(run: Path, step: int, **items: Any) -> Any:
    def read() -> Any:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore((run / CHECKPOINTS / str(step)).absolute(), ocp.args.Composite(**items))

    return attempt(run, step, read)


def attempt(run: Path, step: int, read: Callable[[], Result]) -> Result:
    """What `read` returns; whatever orbax raises becomes a UserError of one line.

    Where several arrays cannot be read, orbax raises for one and drops the rest, whose reads and coroutines then
    complain on standard error: that is kept from the user, and so is the chain of causes that holds them.
    """
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                return read()
            except Exception as error:
                why = first_line(error)
            time.sleep(0.1)  # for the reads still under way
            gc.collect()
    finally:
        logging.disable(logging.NOTSET)
    raise damaged(run, step, why)


def save_error(step: int | None, error: Exception) -> RunError:
    """Whatever orbax raises, as one line."""
    at = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
    return RunError(
        f"cannot save {at}: {first_line(error)}; earlier checkpoints are intact: make room and pass --resume"
    )


def damaged(run: Path, step: int, why: str) -> UserError:
    """What to do about a checkpoint that cannot be used."""
    older = [s for s in checkpoint_steps(run) if s < step]
    mend = f"delete that folder to go back to step {older[-1]}" if older else "there is no older one: start a new run"
    return UserError(f"checkpoint {run / CHECKPOINTS / str(step)} cannot be read: {why}; {mend}")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
