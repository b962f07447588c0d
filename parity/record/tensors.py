"""The arrays that `jax_side` is given where there is no torch: NumPy's, with what a conversion asks of a tensor."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Tensor(np.ndarray):
    """An array that answers `x.detach().cpu().float().numpy()` as a tensor does; all else of it is NumPy's."""

    def detach(self) -> "Tensor":
        """Itself: it has no gradient."""
        return self

    def cpu(self) -> "Tensor":
        """Itself: it is on the host."""
        return self

    def float(self) -> "Tensor":
        """In float32."""
        return self.astype(np.float32).view(Tensor)

    def numpy(self) -> np.ndarray:
        """The same numbers as a plain array; of bfloat16 too, of which torch makes none."""
        return self.view(np.ndarray)


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Copies, which may be written."""
    return {name: x.copy().view(Tensor) for name, x in arrays.items()}
