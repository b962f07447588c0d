"""Both sides' training, step by step: forward, backward, clipping, optimizer, schedule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from parity.broken import is_library, of_port
from parity.lines.line import Line
from parity.pair.clipping import clip_in_place, gradients_of, transformation_of
from parity.pair.masks import Mask
from parity.pair.models import JaxModel, Pass
from parity.pair.recipe import Recipe
from parity.pair.schedules import TorchOptimizer, make_optimizer
from parity.pair.torch_model import TorchModel
from parity.widen_jax import widened

Named = Mapping[str, Any]


@dataclass
class TorchTraining:
    """The original and its optimizer: `backward`, then `update`, for each step."""

    model: TorchModel
    recipe: Recipe
    optimizer: TorchOptimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.recipe, self.model.module.parameters())

    def backward(self, step: int) -> Pass:
        """Forward and backward on the step's batch."""
        return replace(self.model, inputs=self.recipe.ours[step]).run()

    def update(self, step: int) -> dict[str, np.ndarray]:
        """Clips, and takes the step; returns the gradients after clipping."""
        self.optimizer.rates(step)
        with self.model.arithmetic():
            clip_in_place(self.recipe.clip, self.model.module)
            gradients = gradients_of(self.model.module)
            self.optimizer.step()
        return gradients


class Updated(NamedTuple):
    """What the port's optimizer makes of gradients."""

    updates: dict[str, Any]
    state: Any
    leaves: dict[str, Any]


class JaxOptimizer:
    """The port's clipping and its optimizer, each compiled and in float64. Everything goes by the leaves' names."""

    def __init__(self, port: JaxModel, recipe: Recipe, leaves: Named) -> None:
        # An optimizer takes no functions or strings among its leaves: beside those it gets the arrays by name.
        whole = len(jax.tree.leaves(port.build(leaves))) == len(leaves)
        self.tree: Callable[[Named], Any] = port.build if whole else dict
        self.names = list(leaves)
        self.clips, self.clipping = recipe.clip is not None, transformation_of(recipe.clip)
        self.transformation = optax.identity() if recipe.optimizers is None else recipe.optimizers[1]
        self.casts = list[Line]()
        self.clip_fn, self.step_fn = (
            jax.jit(widened(function, self.casts, port.narrow)) for function in (self.clip_tree, self.step_tree)
        )

    def start(self, leaves: Named) -> tuple[Any, Any]:
        """The states of clipping and of the optimizer before the first step."""
        with of_port():
            return self.clipping.init(self.tree(leaves)), self.transformation.init(self.tree(leaves))

    def clip(self, gradients: Named, state: Any, leaves: Named) -> tuple[dict[str, Any], Any]:
        """Gradients after clipping, and the clipping's state."""
        if not self.clips:
            return dict(gradients), state
        with of_port():
            return self.clip_fn(gradients, state, dict(leaves))

    def update(self, gradients: Named, state: Any, leaves: Named) -> Updated:
        """One step from clipped gradients."""
        with of_port():
            return Updated(*self.step_fn(gradients, state, dict(leaves)))

    def clip_tree(self, gradients: Any, state: Any, leaves: Any) -> tuple[Any, Any]:
        """Traceable."""
        found, state = self.clipping.update(self.tree(gradients), state, self.tree(leaves))
        return self.flat(found), state

    def step_tree(self, gradients: Any, state: Any, leaves: Any) -> tuple[Any, Any, Any]:
        """Traceable."""
        updates, state = self.transformation.update(self.tree(gradients), state, self.tree(leaves))
        return self.flat(updates), state, self.flat(optax.apply_updates(self.tree(leaves), updates))

    def flat(self, tree: Any) -> dict[str, Any]:
        """A tree like the parameters by the names of their leaves."""
        if isinstance(tree, dict) and tree.keys() == set(self.names):
            return tree
        leaves = jax.tree.leaves(tree)
        if len(leaves) != len(self.names):
            raise TypeError(f"it returns {len(leaves)} arrays where there are {len(self.names)} gradients")
        return dict(zip(self.names, leaves, strict=True))

    def own_casts(self) -> list[Line]:
        """The lines of the user's that cast; a library's are of the same kind on both sides."""
        return [cast for cast in self.casts if not is_library(cast.file)]


class Trained(NamedTuple):
    """The port after one step of its own."""

    loss: np.ndarray
    leaves: dict[str, Any]


def train_port(
    port: JaxModel,
    recipe: Recipe,
    optimizer: JaxOptimizer,
    leaves: Named,
    buffers: Named,
    masks: Sequence[tuple[Mask, ...]],
) -> Iterator[Trained]:
    """A run of the port's own: its gradients, its clipping, its optimizer, its buffers. masks: torch's, by step."""
    clipping, state = optimizer.start(leaves)
    for inputs, drawn in zip(recipe.theirs, masks, strict=True):
        found = replace(port, inputs=inputs, masks=drawn).run(leaves, buffers)
        gradients, clipping = optimizer.clip(like(leaves, found.param_gradients), clipping, leaves)
        _, state, leaves = optimizer.update(gradients, state, leaves)
        buffers = {name: jnp.asarray(x) for name, x in found.buffers.items()}
        yield Trained(found.loss, dict(leaves))


def like(leaves: Named, values: Named) -> dict[str, Any]:
    """Values as JAX arrays of the leaves' types; zeros where a leaf has none."""
    return {leaf: jnp.asarray(values.get(leaf, np.zeros(x.shape)), x.dtype) for leaf, x in leaves.items()}
