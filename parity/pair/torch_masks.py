"""The masks that torch draws at random, as it draws them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parity.capture import to_numpy
from parity.pair.masks import Mask

SEED = 0  # of every pass of torch's, so that its masks are the same in each


@contextmanager
def recorded() -> Iterator[list[Mask]]:
    """The masks that torch draws within it, from a seed of its own; the user's generator is left as it was."""
    masks: list[Mask] = []
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        with Recording(masks):
            yield masks


class Recording(TorchDispatchMode):
    """Keeps what `bernoulli_` draws."""

    def __init__(self, masks: list[Mask]) -> None:
        super().__init__()
        self.masks = masks

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The operation as it is."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is torch.ops.aten.bernoulli_.float:
            self.masks.append(Mask(to_numpy(output) != 0, float(kwargs.get("p", args[1] if len(args) > 1 else 0.5))))
        return output
