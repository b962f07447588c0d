"""What a fault is, and how it is put in place."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from parity.check_configs import split_devices


@dataclass(frozen=True)
class Fault:
    """One mistake. `about` says what is wrong and, in brackets, where it was met in public, if it was.

    stage: where it arises, and so where the check must name it; None for what changes no number, and then
    `equivalent` says why. flags: what one adds to `python -m parity check MODEL` to see it, where the model's usual
    configuration would not show it: flags of the trainers, and the check's own --devices.
    """

    name: str
    model: str
    stage: str | None
    about: str
    inject: Callable[[], AbstractContextManager[Any]]
    equivalent: str = ""
    flags: str = ""

    @property
    def devices(self) -> int:
        """Over how many the step runs."""
        return split_devices(shlex.split(self.flags))[1]

    @property
    def trainer_flags(self) -> list[str]:
        """The flags but for --devices and its number."""
        return split_devices(shlex.split(self.flags))[0]


@contextmanager
def swapped(old: Any, new: Any) -> Iterator[None]:
    """`new` in place of `old`, under whatever name, in all modules of jax_impl and in parity's JAX side."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "jax_impl" or name == "parity.jax_side":
                for attribute, value in list(vars(module).items()):
                    if value is old:
                        stack.enter_context(mock.patch.object(module, attribute, new))
        yield


def swap(old: Any, new: Any) -> Callable[[], AbstractContextManager[None]]:
    """`swapped`, to be entered later."""
    return lambda: swapped(old, new)


def method(cls: type, name: str, new: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Another method of a class, to be put in place later."""
    return lambda: mock.patch.object(cls, name, new)
