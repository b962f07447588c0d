"""The port: jax_impl's own functions, jitted as the trainer does, watched through tags and a probing optimizer."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl import checkpoint, evaluate, input, optimizer, parallel, step
from jax_impl.losses import IGNORE
from jax_impl.models import make_model
from jax_impl.tree import flatten, unflatten
from parity.capture import capture_jax
from parity.own_bridge import torch_to_jax
from parity.side import Batch, Captured, Named, Optimized, Stepped, TrainingState, micro_name
from twinstep.config import Config
from twinstep.data import Data
from twinstep.progress import first_facts

# The fields of optax's and our own optimizer states, and what torch_side calls them.
MOMENTS = {"mu": "first_moment", "nu": "second_moment", "momentum": "momentum", "count": "count"}
OBSERVED = "observed"


class Observed(NamedTuple):
    """The state of `observe`: the last gradients, a tree like the parameters."""

    observed: Any


def observe() -> optax.GradientTransformation:
    """Passes gradients on unchanged and keeps the last ones in its state, where the check reads them."""
    return optax.GradientTransformation(
        lambda params: Observed(jax.tree.map(jnp.zeros_like, params)),
        lambda grads, state, params=None: (grads, Observed(grads)),
    )


def probing_optimizer(config: Config, params: Any, *stacks: Any) -> optax.GradientTransformation:
    """jax_impl's optimizer, which keeps the gradients before clipping, and those that each group receives after it.

    stacks: what `jax_impl.parallel.muon_stacks` gives.
    """
    make_transform = optimizer.make_transform

    def observed_transform(config: Config, group: optimizer.Group, *rest: Any) -> optax.GradientTransformation:
        return optax.chain(observe(), make_transform(config, group, *rest))

    with mock.patch.object(optimizer, "make_transform", observed_transform):
        return keep_gradients(optimizer.make_optimizer(config, params, *stacks))


def keep_gradients(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for what the step hands it within `probing_clip`; its state begins with the unclipped gradients."""

    def update(given: tuple[Any, Any], state: tuple[Observed, Any], params: Any = None) -> tuple[Any, Any]:
        before, clipped = given
        updates, inner_state = inner.update(clipped, state[1], params)
        return updates, (Observed(before), inner_state)

    return optax.GradientTransformation(
        lambda params: (Observed(jax.tree.map(jnp.zeros_like, params)), inner.init(params)),
        update,
    )


@contextmanager
def probing_clip() -> Iterator[None]:
    """Within it the step's clipping hands on both gradients, before and after, to a `probing_optimizer`."""
    clip = step.clip_by_global_norm

    def both(grads: Any, max_norm: float) -> tuple[tuple[Any, Any], jax.Array]:
        clipped, norm = clip(grads, max_norm)
        return (grads, clipped), norm

    with mock.patch.object(step, "clip_by_global_norm", both):
        yield


class JaxSide:
    """See `parity.side.Side`. With several devices the step runs under pmap on all there are."""

    def __init__(self, config: Config, devices: int = 1):
        self.config = config
        mode = "jit" if devices == 1 else "pmap"
        self.model = make_model(config, None, parallel.attention())
        self.optimizer = probing_optimizer(config, self.model.params, *parallel.muon_stacks(mode))
        stepped = make_model(config, parallel.axis_name(mode), parallel.attention())
        self.steps = parallel.make_steps(config, mode, stepped, self.optimizer)
        self.groups = optimizer.optimizer_groups(config)
        self.jit_capture = jax.jit(self._capture)
        self.jit_optimize = jax.jit(self._optimize)

    def initial_state(self, weights: Named) -> TrainingState:
        return self.read(step.init_state(self.model, self.optimizer, weights, self.config.train.seed))

    def read(self, state: step.State) -> TrainingState:
        """A state as NumPy arrays; a group's counters are one number if they agree, as they must."""
        weights = arrays({**flatten(state.params), **flatten(state.buffers)})
        found: dict[str, list[np.ndarray]] = {}
        for name, leaf in zip(self.state_names(state.opt_state), jax.tree.leaves(state.opt_state), strict=True):
            if not name.startswith(OBSERVED):
                found.setdefault(name, []).append(np.asarray(leaf))
        moments = {
            name: same[0] if all(np.array_equal(x, same[0], equal_nan=True) for x in same) else np.stack(same)
            for name, same in found.items()
        }
        return TrainingState(weights, moments, int(state.step))

    def load(self, state: TrainingState) -> step.State:
        """The reference's state carried over the bridge."""
        params, buffers = jax.tree.map(jnp.array, torch_to_jax(self.model, state.weights))
        key = jax.random.key_data(jax.random.key(self.config.train.seed))
        empty = self.optimizer.init(params)
        leaves = [
            jnp.array(state.moments.get(name, leaf), leaf.dtype)
            for name, leaf in zip(self.state_names(empty), jax.tree.leaves(empty), strict=True)
        ]
        opt_state = jax.tree.unflatten(jax.tree.structure(empty), leaves)
        return step.State(params, buffers, opt_state, jnp.int32(state.step), key)

    def carried(self, state: TrainingState) -> Named:
        """Parameters and buffers in the JAX tree after the bridge, under the tree's own names."""
        jax_state = self.load(state)
        return arrays({**flatten(jax_state.params), **flatten(jax_state.buffers)})

    def resume(self, state: TrainingState) -> TrainingState:
        """What a run goes on from after its checkpoint was written and read again."""
        jax_state = self.load(state)
        with tempfile.TemporaryDirectory() as folder:
            with checkpoint.open_manager(Path(folder)) as manager:
                checkpoint.save(manager, jax_state, first_facts(self.config))
            restored, _ = checkpoint.restore(Path(folder), self.config, jax_state, state.step)
        return self.read(restored)

    def state_names(self, opt_state: Any) -> list[str]:
        """ "kind/parameter" or "count/label" for every leaf; "observed/..." for what the probes hold."""
        names = []
        for path, _ in jax.tree_util.tree_leaves_with_path(opt_state):
            label, field, keys = "", "", list[str]()
            for entry in path:
                match entry:
                    case jax.tree_util.GetAttrKey(name=name):
                        field, keys = name, []
                    case jax.tree_util.DictKey(key=key) if field == "inner_states":
                        label, field = str(key), ""
                    case jax.tree_util.DictKey(key=key):
                        keys.append(str(key))
            kind = MOMENTS.get(field, field)
            if kind == "first_moment" and self.groups[label].algorithm == "muon":
                kind = "momentum"
            names.append(
                f"{kind}/{'.'.join(keys) or label}" if kind != OBSERVED else f"{OBSERVED} {label}/{'.'.join(keys)}"
            )
        return names

    def observed(self, opt_state: Any) -> tuple[Named, Named]:
        """What the probes saw: gradients before clipping, and after."""
        before: Named = {}
        after: Named = {}
        for name, leaf in zip(self.state_names(opt_state), jax.tree.leaves(opt_state), strict=True):
            if name.startswith(OBSERVED):
                probe, _, parameter = name.partition("/")
                (before if probe == f"{OBSERVED} " else after)[parameter] = np.asarray(leaf)
        return before, after

    def schedule(self) -> Named:
        o, n = self.config.optimizer, self.config.train.steps
        steps = jnp.arange(n, dtype=jnp.int32)
        rate, decay, momentum = (
            np.asarray(jax.vmap(curve)(steps), np.float64)
            for curve in (
                lambda count: optimizer.lr_multiplier(o, n, count),
                lambda count: optimizer.decay_multiplier(o, n, count),
                lambda count: optimizer.muon_momentum(o, count),
            )
        )
        labels = optimizer.label_parameters(self.config, list(flatten(self.model.params)))
        curves: Named = {}
        for label in sorted(set(labels.values())):
            group = optimizer.optimizer_groups(self.config)[label]
            curves[f"{label} learning_rate"] = group.learning_rate * rate
            curves[f"{label} weight_decay"] = group.weight_decay * decay
            if group.algorithm == "muon":
                curves[f"{label} momentum"] = momentum
        return curves

    def batches(self, data: Data, start: int, stop: int) -> Iterator[Batch]:
        return input.train_batches(data.train, start, stop)

    def capture(self, state: TrainingState, batch: Batch) -> Captured:
        """Activations and their gradients, micro-step by micro-step, with dropout as in training."""
        jax_state = self.load(state)
        targets = np.maximum((batch["targets"] != IGNORE).sum(), 1)
        captured = Captured()
        for number in range(batch["targets"].shape[0]):
            micro = {name: x[number] for name, x in batch.items()}
            found = self.jit_capture(jax_state.params, jax_state.buffers, micro, jax_state.key, targets)
            for ours, theirs in zip((captured.activations, captured.gradients), found, strict=True):
                ours |= {micro_name(name, number): np.asarray(x) for name, x in theirs.items()}
        return captured

    def _capture(self, params: Any, buffers: Any, micro: step.Batch, key: jax.Array, targets: jax.Array) -> Any:
        def mean_loss(params: Any) -> Any:
            nats, _ = step.summed_loss(params, self.model, buffers, micro, jax.random.wrap_key_data(key))
            return nats / targets.astype(nats.dtype), None

        found = capture_jax(mean_loss, params)
        return found.activations, found.gradients

    def train_step(self, state: TrainingState, batch: Batch) -> Stepped:
        jax_state = self.steps.place_state(self.load(state))
        with probing_clip():  # when the step is traced, at its first call
            after, metrics = self.steps.train(jax_state, self.steps.place_train_batch(batch))
        return Stepped(
            np.asarray(metrics["loss"]),
            np.asarray(metrics["grad_norm"]),
            float(metrics["learning_rate"]),
            self.observed(after.opt_state)[0],
            self.read(after),
        )

    def _optimize(self, gradients: Any, state: step.State) -> step.State:
        with probing_clip():
            given, _ = step.clip_by_global_norm(gradients, self.config.optimizer.clip_norm)
        updates, opt_state = self.optimizer.update(given, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1)

    def optimize(self, state: TrainingState, gradients: Named) -> Optimized:
        tree = unflatten({name: jnp.asarray(g) for name, g in gradients.items()})
        after = self.jit_optimize(tree, self.load(state))
        return Optimized(self.observed(after.opt_state)[1], self.read(after))

    def evaluate(self, state: TrainingState, data: Data, limit: int) -> Named:
        placed = self.steps.place_state(self.load(state))
        batches = map(self.steps.place_eval_batch, input.eval_batches(data.validation, limit))
        sums = evaluate.evaluate(lambda batch: self.steps.evaluate(placed, batch), batches)
        return {**sums._asdict(), **evaluate.metrics(sums)}


def arrays(named: Named) -> Named:
    """JAX arrays as NumPy arrays."""
    return {name: np.asarray(x) for name, x in named.items()}
