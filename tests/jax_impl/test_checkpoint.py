import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_impl.checkpoint import (
    finish,
    load_params,
    name_arrays,
    open_manager,
    read_facts,
    restore,
    save,
    split_state,
)
from jax_impl.models import make_model
from jax_impl.optimizer import make_optimizer
from jax_impl.step import State, init_state
from jax_impl.tree import flatten
from twinstep.config import Config, MLPConfig, TabularConfig
from twinstep.errors import RunError, UserError
from twinstep.init import initial_weights
from twinstep.progress import first_facts
from twinstep.run_dir import CHECKPOINTS, checkpoint_steps, remove_old, write_run

CONFIG = Config(model=MLPConfig(features=6, classes=3, hidden=5), data=TabularConfig())


@pytest.fixture(scope="module")
def state():
    model = make_model(CONFIG)
    shapes = {name: leaf.shape for name, leaf in {**flatten(model.params), **flatten(model.buffers)}.items()}
    return init_state(model, make_optimizer(CONFIG, model.params), initial_weights(shapes, 0, "nonzero"), 7)


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path, CONFIG, {})
    return tmp_path


def at(state, step):
    return state._replace(step=jnp.asarray(step, jnp.int32))


def test_every_array_has_a_name_of_its_own(state):
    weights, training = split_state(state)
    by_name = name_arrays(weights, training)
    assert len(by_name) == len(jax.tree.leaves((weights, training)))
    np.testing.assert_array_equal(by_name["fc2.bias"], state.params["fc2"]["bias"])
    np.testing.assert_array_equal(by_name["norm.running_var"], state.buffers["norm"]["running_var"])
    np.testing.assert_array_equal(by_name["key"], state.key)
    assert by_name["step"].dtype == jnp.int32


def test_a_state_comes_back_as_it_was_saved(state, run):
    facts = {**first_facts(CONFIG), "best_val_loss": 0.1 + 0.2}
    with open_manager(run) as manager:
        save(manager, at(state, 3), facts)
    zeros = jax.tree.map(jnp.zeros_like, state)
    restored, found = restore(run, CONFIG, zeros, 3)
    assert found == facts
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(at(state, 3)):
        other = dict(jax.tree_util.tree_leaves_with_path(restored))[path]
        assert other.dtype == leaf.dtype, path
        np.testing.assert_array_equal(other, leaf, str(path))
    _, weights = load_params(run)
    assert sorted(weights) == sorted({**flatten(state.params), **flatten(state.buffers)})
    assert all(isinstance(array, np.ndarray) for array in weights.values())


def test_what_is_saved_is_the_state_at_that_moment(run):
    """On a CPU the arrays are saved from where they lie: what steps that take them over do must not be seen there."""
    ones = State({"weight": jnp.ones(2**22)}, {}, {}, jnp.int32(1), jnp.zeros(2, jnp.uint32))  # long to write
    pointer = ones.params["weight"].unsafe_buffer_pointer()
    add_one = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    alone = add_one(jax.tree.map(jnp.copy, ones))
    kept = alone.params["weight"].unsafe_buffer_pointer()
    assert add_one(alone).params["weight"].unsafe_buffer_pointer() == kept, "without a save, a step works in place"
    with open_manager(run) as manager:
        save(manager, ones, first_facts(CONFIG))
        later = add_one(ones)
        for _ in range(3):
            later = add_one(later)
        assert later.params["weight"].unsafe_buffer_pointer() != pointer
    _, weights = load_params(run, 1)
    np.testing.assert_array_equal(weights["weight"], 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_and_not_saved(value, state, run):
    spoiled = jax.tree.map(jnp.array, at(state, 2))
    spoiled.params["fc2"]["bias"] = spoiled.params["fc2"]["bias"].at[1].set(value)
    with open_manager(run) as manager, pytest.raises(RunError, match=r"step 2: fc2\.bias is not finite"):
        save(manager, spoiled, first_facts(CONFIG))
    assert checkpoint_steps(run) == []


def test_the_last_ones_and_the_best_are_kept(state, run):
    with open_manager(run) as manager:
        for step in (1, 2, 3, 4, 5):
            save(manager, at(state, step), {**first_facts(CONFIG), "best_step": 2})
            finish(manager)
            remove_old(run, 2, read_facts)
    assert checkpoint_steps(run) == [2, 4, 5]


def test_a_checkpoint_that_is_not_there_is_refused(state, run):
    with pytest.raises(UserError, match="has no finished checkpoint"):
        load_params(run)
    with open_manager(run) as manager:
        save(manager, at(state, 3), first_facts(CONFIG))
    with pytest.raises(UserError, match=r"has no checkpoint of step 4; there are 3"):
        load_params(run, 4)
    with pytest.raises(UserError, match="no run in"):
        load_params(run / "nowhere")


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(state, run):
    with open_manager(run) as manager:
        save(manager, at(state, 3), first_facts(CONFIG))
    other = state._replace(params={**state.params, "fc3": state.params["fc2"]})
    with pytest.raises(UserError, match="cannot be read") as error:
        restore(run, CONFIG, other, 3)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_torch_ref_is_recognized(run):
    (run / CHECKPOINTS / "3").mkdir()
    (run / CHECKPOINTS / "3" / "facts.json").write_text("{}")
    with pytest.raises(UserError, match="is a run of torch_ref; python -m parity convert"):
        read_facts(run, 3)
