"""A GPT's blocks as one loop over their weights: `--parallel fsdp`'s form of the loop in `GPT.hidden`.

Shapes: B batch, T time, D model, C head channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def scan_blocks(
    blocks: Sequence[Any], x_BTD: jax.Array, cos_TC: jax.Array, sin_TC: jax.Array, remat: bool
) -> jax.Array:
    """x (B, T, D) through all blocks, (B, T, D).

    The program holds one block whatever the depth, and a block's sharded weights are gathered while it runs and no
    longer, with remat once more in the backward pass.
    """
    graphdef = nnx.graphdef(blocks[0])  # the blocks differ in their weights and paths only
    stacked = jax.tree.map(lambda *weights: jnp.stack(weights), *(nnx.state(block) for block in blocks))

    def run(x_BTD: jax.Array, weights: nnx.State) -> tuple[jax.Array, None]:
        return nnx.merge(graphdef, weights)(x_BTD, cos_TC, sin_TC), None

    # XLA does not merge a loop's body with its neighbours: the barriers of `checkpoint` would only be in the way.
    return jax.lax.scan(jax.checkpoint(run, prevent_cse=False) if remat else run, x_BTD, stacked)[0]
