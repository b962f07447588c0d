"""The small problem that `many_devices` and `_ddp` both solve: a linear classifier on eight examples, some ignored."""

import numpy as np

FEATURES, CLASSES, EXAMPLES = 6, 4, 8


def batch() -> tuple[np.ndarray, np.ndarray]:
    """inputs (8, 6), targets (8,); the halves have different numbers of ignored ones."""
    random = np.random.default_rng(0)
    targets_B = random.integers(0, CLASSES, EXAMPLES)
    targets_B[[5, 6, 7]] = -1
    return random.normal(size=(EXAMPLES, FEATURES)), targets_B


def start() -> np.ndarray:
    """weight (4, 6)."""
    return np.random.default_rng(1).normal(size=(CLASSES, FEATURES))
