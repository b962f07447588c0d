"""Run directories of jax_impl."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_impl.checkpoint import open_manager, restore, save
from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import State, init_state
from jax_impl.tree import flatten
from parity.formats.run_files import read_files, write_files
from parity.formats.snapshot import Snapshot, weight_shapes_of
from twinstep.config import Config
from twinstep.errors import UserError
from twinstep.progress import first_facts
from twinstep.run_dir import choose_step

# The fields of optax's and our own states, and what torch calls the same arrays.
TORCH_NAMES = {"mu": "exp_avg", "nu": "exp_avg_sq", "momentum": "momentum_buffer"}


def read(run: Path, step: int | None) -> Snapshot:
    """Raises UserError if the run or the checkpoint is not there or damaged."""
    step = choose_step(run, step)
    config, tokenizer, files = read_files(run, step)
    with jax.enable_x64(config.train.dtype == "float64"):
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), jax.eval_shape(lambda: start(config))
        )
        state, facts = restore(run, config, like, step)
        weights = {name: np.array(x) for name, x in (flatten(state.params) | flatten(state.buffers)).items()}
        moments = {name: np.array(x) for name, x in name_moments(state.opt_state) if name is not None}
        check_counts(run, state, step)
    return Snapshot(config, step, weights, moments if step else None, facts, tokenizer, files)


def write(folder: Path, snapshot: Snapshot, out: Path) -> None:
    """Write a run into the empty `folder`, which will be renamed to `out`."""
    config = write_files(folder, snapshot, out)
    with jax.enable_x64(config.train.dtype == "float64"):
        state = start(config, snapshot.weights)
        if snapshot.optimizer is not None:
            leaves = [
                jnp.asarray(snapshot.step if name is None else snapshot.optimizer[name], leaf.dtype)
                for name, leaf in name_moments(state.opt_state)
            ]
            opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
            state = state._replace(opt_state=opt_state, step=jnp.asarray(snapshot.step, jnp.int32))
        with open_manager(folder) as manager:
            save(manager, state, snapshot.facts or first_facts(config))


def start(config: Config, weights: dict[str, np.ndarray] | None = None) -> State:
    """The state of a run at step 0; zeros where no weights are given."""
    model = make_model(config)
    if weights is None:
        weights = {name: np.zeros(shape) for name, shape in weight_shapes_of(config).items()}
    return init_state(model, make_optimizer(config, model.params), weights, config.train.seed)


def name_moments(opt_state: Any) -> list[tuple[str | None, Any]]:
    """("parameter/state name", leaf) for every leaf of an optimizer state, in its order; None names a count of steps.

    A moment's path is the field of its state's NamedTuple, then the parameter's own keys.
    """
    named: list[tuple[str | None, Any]] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        fields = [getattr(entry, "name", None) for entry in path]
        at = next((i for i, field in enumerate(fields) if field in TORCH_NAMES), None)
        if at is None:
            named.append((None, leaf))
        else:
            parameter = ".".join(str(entry.key) for entry in path[at + 1 :])
            named.append((f"{parameter}/{TORCH_NAMES[str(fields[at])]}", leaf))
    return named


def check_counts(run: Path, state: State, step: int) -> None:
    """Every count of steps must be the checkpoint's: torch has one per parameter, optax one per transformation."""
    counts = {int(leaf) for name, leaf in name_moments(state.opt_state) if name is None} | {int(state.step)}
    if counts - {step}:
        raise UserError(f"{run}: the checkpoint of step {step} has counted the steps {sorted(counts)}; it is damaged")
