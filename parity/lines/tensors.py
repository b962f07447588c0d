"""Which node holds a tensor's numbers, through views of its memory and writes into it."""

from typing import NamedTuple

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary


class Held(NamedTuple):
    """The node of an array, and how many writes into its memory it knows of."""

    node: int
    writes: int


class Memory:
    """One storage: its arrays by their place in it, and the nodes that wrote into it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.reference = StorageWeakRef(tensor.untyped_storage())  # no new storage gets this one's address
        self.arrays: dict[tuple, Held] = {}
        self.writes: list[int] = []


class Tensors:
    """Every tensor met so far. Nothing is kept alive."""

    def __init__(self) -> None:
        self.memories: dict[int, Memory] = {}
        self.known = WeakTensorKeyDictionary()  # of several tensors at one place each has its own node

    def memory(self, tensor: torch.Tensor) -> Memory:
        """The memory that a tensor shows."""
        address = tensor.untyped_storage()._cdata
        if address not in self.memories:
            self.memories[address] = Memory(tensor)
        return self.memories[address]

    def held(self, tensor: torch.Tensor) -> Held | None:
        """What is known of a tensor."""
        own, at_place = self.known.get(tensor), self.memory(tensor).arrays.get(place(tensor))
        if own is None or (at_place is not None and at_place.writes > own.writes):
            return at_place
        return own

    def hold(self, tensor: torch.Tensor, node: int, written: bool = False) -> None:
        """From now on a node holds a tensor's numbers; `written`: also those of other tensors at its place."""
        memory = self.memory(tensor)
        if written:
            memory.writes.append(node)
        self.known[tensor] = held = Held(node, len(memory.writes))
        if written or place(tensor) not in memory.arrays:
            memory.arrays[place(tensor)] = held

    def renew(self, tensor: torch.Tensor, node: int) -> None:
        """A node holds what a tensor shows after other tensors were written."""
        memory = self.memory(tensor)
        self.known[tensor] = memory.arrays[place(tensor)] = Held(node, len(memory.writes))


def place(tensor: torch.Tensor) -> tuple:
    """Where in its memory a tensor lies, and how it reads it."""
    conjugate = tensor.is_conj(), tensor.is_neg()
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, conjugate


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it has memory and numbers: it is neither sparse nor nested, nor a shape alone."""
    return tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type != "meta"


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers, without a copy where that is possible."""
    with torch._C._DisableTorchDispatch():
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return tensor.numpy(force=True)
