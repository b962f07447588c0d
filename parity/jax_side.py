"""The port: jax_impl's own functions, jitted as the trainer does, watched through tags and a probing optimizer."""

import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_impl import checkpoint, evaluate, input, optimizer, parallel, step
from jax_impl.losses import IGNORE
from jax_impl.models import make_model
from jax_impl.tree import flatten, unflatten
from parity.capture import capture_jax
from parity.moments import Layout, find_layout
from parity.own_bridge import torch_to_jax
from parity.probes import observed_gradients, probe_names, probing_clip, probing_optimizer
from parity.side import Batch, Captured, Named, Optimized, Resumed, Stepped, TrainingState, micro_name, named_norms
from twinstep.config import Config
from twinstep.data import Data
from twinstep.progress import first_facts


class JaxSide:
    """See `parity.side.Side`. The step runs as `--parallel` says; auto: under jit on one device, under pmap on several.

    What the step consists of runs on one device.
    """

    def __init__(self, config: Config, devices: int = 1):
        self.config = config
        mode = config.devices.parallel
        if mode == "auto":
            mode = "jit" if devices == 1 else "pmap"
        self.model = make_model(config, None, parallel.attention())
        self.optimizer = probing_optimizer(config, self.model.params, *parallel.muon_stacks(mode))
        stepped = make_model(config, parallel.axis_name(mode), parallel.attention(), parallel.scans_blocks(mode))
        self.steps = parallel.make_steps(config, mode, stepped, self.optimizer)
        self.jit_capture = jax.jit(self._capture)
        self.jit_optimize = jax.jit(self._optimize)

    def initial_state(self, weights: Named) -> TrainingState:
        return self.read(self.steps.init_state(weights))

    def orthogonalized_in_bfloat16(self) -> list[str]:
        """The parameters whose update is so coarse."""
        groups = optimizer.optimizer_groups(self.config)
        labels = optimizer.label_parameters(self.config, list(flatten(self.model.params)))
        coarse = optimizer.newton_schulz_dtype(self.config) == jnp.bfloat16
        return [name for name, label in labels.items() if coarse and groups[label].algorithm == "muon"]

    @cached_property
    def layout(self) -> Layout:
        """What is what in the optimizer's state, as two updates show it, from gradients of opposite signs."""
        random, shapes = np.random.default_rng(0), flatten(self.model.params) | flatten(self.model.buffers)
        start = step.init_state(self.model, self.optimizer, {n: np.zeros(s.shape) for n, s in shapes.items()}, 0)
        first = {name: random.standard_normal(p.shape) for name, p in flatten(start.params).items()}
        second = {name: -random.uniform(0.5, 2, g.shape) * g for name, g in first.items()}
        after, received = [], list[Named]()
        try:
            for gradients in (first, second):
                given = jax.tree.map(lambda p, g: jnp.asarray(g, p.dtype), start.params, unflatten(gradients))
                after.append(self.jit_optimize(given, start).opt_state)
                received.append(observed_gradients(after[-1])[1])
        except Exception:  # the training step will raise it too, where it is judged
            return Layout(probe_names(start.opt_state), [], {}, {})
        both = {name: np.stack([one[name] for one in received]) for name in received[0]}
        return find_layout(start.opt_state, after, both, probe_names(start.opt_state))

    def read(self, state: step.State) -> TrainingState:
        """A state as NumPy arrays; a group's counters are one number if they agree, as they must."""
        weights = arrays({**flatten(state.params), **flatten(state.buffers)})
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.opt_state)]
        moments = {place.name: place.of(leaves) for place in self.layout.moments}
        for name, numbers in self.counters().items():
            counts = [np.int32(leaves[number]) for number in numbers]  # one may count in floating point
            moments[name] = np.stack(counts) if len(set(counts)) > 1 else np.asarray(counts[0])
        moments |= {path: leaves[number] for number, path in self.layout.unknown.items()}
        return TrainingState(weights, moments, int(state.step), np.asarray(state.key))

    def counters(self) -> dict[str, list[int]]:
        """The leaves of each count's name."""
        names = sorted(set(self.layout.counts.values()))
        return {name: [number for number, of in self.layout.counts.items() if of == name] for name in names}

    def load(self, state: TrainingState) -> step.State:
        """A state of either side carried over the bridge; moments that it does not have stay as they begin."""
        params, buffers = jax.tree.map(jnp.array, torch_to_jax(self.model, state.weights))
        empty = self.optimizer.init(params)
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(empty)]
        for place in self.layout.moments:
            if place.name in state.moments:
                place.of(leaves)[...] = state.moments[place.name]
        for name, numbers in self.counters().items():
            counts = np.broadcast_to(state.moments.get(name, state.step), len(numbers))
            for number, count in zip(numbers, counts, strict=True):
                leaves[number] = count.astype(leaves[number].dtype)
        for number, path in self.layout.unknown.items():
            leaves[number] = state.moments.get(path, leaves[number])
        opt_state = jax.tree.unflatten(jax.tree.structure(empty), map(jnp.asarray, leaves))
        key = jax.random.key_data(jax.random.key(self.config.train.seed)) if state.key is None else state.key
        return step.State(params, buffers, opt_state, jnp.int32(state.step), jnp.asarray(key))

    def carried(self, state: TrainingState) -> Named:
        """Parameters and buffers in the JAX tree after the bridge, under the tree's own names."""
        jax_state = self.load(state)
        return arrays({**flatten(jax_state.params), **flatten(jax_state.buffers)})

    def resume(self, state: TrainingState) -> Resumed:
        """A checkpoint written and read again."""
        jax_state = self.load(state)
        with tempfile.TemporaryDirectory() as folder:
            with checkpoint.open_manager(Path(folder)) as manager:
                checkpoint.save(manager, jax_state, first_facts(self.config))
            restored, _ = checkpoint.restore(Path(folder), self.config, jax_state, state.step)
        return Resumed(self.read(restored), self.fields(jax_state), self.fields(restored))

    def fields(self, state: step.State) -> Named:
        """Every array of a state by name, but for what the check itself keeps in it."""
        named = {**flatten(state.params), **flatten(state.buffers), "step": state.step, "key": state.key}
        for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(state.opt_state)):
            if number not in self.layout.probes:
                named[f"opt_state{jax.tree_util.keystr(path)}"] = leaf
        return arrays(named)

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
            key = jax.random.fold_in(jax.random.wrap_key_data(jax_state.key), jax_state.step)
            key = jax.random.key_data(jax.random.fold_in(key, number))  # as `jax_impl.step` makes it
            found = self.jit_capture(jax_state.params, jax_state.buffers, micro, key, targets)
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
            named_norms(flatten(self.model.params), arrays(metrics)),
            observed_gradients(after.opt_state)[0],
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
        return Optimized(observed_gradients(after.opt_state)[1], self.read(after))

    def evaluate(self, state: TrainingState, data: Data, limit: int) -> Named:
        placed = self.steps.place_state(self.load(state))
        batches = map(self.steps.place_eval_batch, input.eval_batches(data.validation, limit))
        sums = evaluate.evaluate(lambda batch: self.steps.evaluate(placed, batch), batches)
        return {**sums._asdict(), **evaluate.metrics(sums)}


def arrays(named: Named) -> Named:
    """JAX arrays as NumPy arrays."""
    return {name: np.asarray(x) for name, x in named.items()}
