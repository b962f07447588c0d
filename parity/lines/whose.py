"""Whose code a file is: the user's, a framework's, or of the machinery around both."""

import functools
import os
import sys
import sysconfig
from typing import Literal

Whose = Literal["user", "framework", "machinery"]

FRAMEWORKS = ("flax", "haiku", "equinox", "keras", "optax", "chex", "einops")
MACHINERY = ("jax", "jaxlib", "numpy")
PARITY = os.path.dirname(os.path.dirname(__file__)) + os.sep
LIBRARY = sysconfig.get_path("stdlib") + os.sep
INSTALLED = ("site-packages", "dist-packages")  # they may lie within Python's own library


@functools.cache
def whose(file: str) -> Whose:
    """By where the file lies. parity's own code is machinery, but for its planted faults."""
    if file.startswith("<") and not file.startswith(("<ipython", "<stdin")):
        return "machinery"
    if file.startswith(PARITY):
        return "user" if file.startswith(os.path.join(PARITY, "faults", "")) else "machinery"
    if file.startswith(LIBRARY) and not any(f"{os.sep}{name}{os.sep}" in file for name in INSTALLED):
        return "machinery"
    if within(file, MACHINERY):
        return "machinery"
    return "framework" if within(file, FRAMEWORKS) else "user"


def within(file: str, packages: tuple[str, ...]) -> bool:
    """Whether the file lies in one of these packages: code that ran has been imported."""
    roots = [root for name in packages for root in getattr(sys.modules.get(name), "__path__", ())]
    return any(file.startswith(root + os.sep) for root in roots)
