"""The torch arrays, looked up by their numbers."""

from collections.abc import Iterable, Mapping

import numpy as np

from parity.sources.fingerprint import along_axes, fingerprint


class Arrays:
    """Fingerprints of the arrays, each calculated when it is first asked for.

    A leaf of a narrower type holds the array's numbers rounded, so what is asked is always for a leaf's type.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = {name: array for name, array in arrays.items() if array.size and is_numeric(array)}
        self.by_size: dict[int, list[str]] = {}
        for name, array in self.arrays.items():
            self.by_size.setdefault(array.size, []).append(name)
        self.by_mark: dict[tuple[int, str], dict[int, list[str]]] = {}
        self.first, self.last = list(self.arrays), list[str]()  # in which order windows are looked for in them
        self.marks: dict[tuple[str, str], int] = {}
        self.slices: dict[tuple[str, str], list[np.ndarray]] = {}

    def search_last(self, names: Iterable[str]) -> None:
        """Look for windows in all others first."""
        fed = set(names)
        self.first = [name for name in self.arrays if name not in fed]
        self.last = [name for name in self.arrays if name in fed]

    def rounded(self, name: str, dtype: np.dtype) -> np.ndarray:
        """The array as a leaf of this type would hold it."""
        return rounded(self.arrays[name], dtype)

    def with_mark(self, mark: int, size: int, dtype: np.dtype) -> list[str]:
        """The arrays of so many numbers whose fingerprint this is."""
        key = size, str(dtype)
        if key not in self.by_mark:
            by_mark = self.by_mark[key] = {}
            for name in self.by_size.get(size, []):
                by_mark.setdefault(self.mark(name, dtype), []).append(name)
        return self.by_mark[key].get(mark, [])

    def mark(self, name: str, dtype: np.dtype) -> int:
        """The array's fingerprint."""
        key = name, str(dtype) if narrows(self.arrays[name].dtype, dtype) else ""
        if key not in self.marks:
            self.marks[key] = fingerprint(self.rounded(name, dtype))
        return self.marks[key]

    def along_axes(self, name: str, dtype: np.dtype) -> list[np.ndarray]:
        """The fingerprints of the array's slices, for each of its axes."""
        key = name, str(dtype) if narrows(self.arrays[name].dtype, dtype) else ""
        if key not in self.slices:
            self.slices[key] = along_axes(self.rounded(name, dtype))
        return self.slices[key]


def is_numeric(array: np.ndarray) -> bool:
    """Real numbers: floats (bfloat16 is of kind V), integers, booleans."""
    return array.dtype.kind in "fiub" or (array.dtype.kind == "V" and array.dtype.names is None)


def narrows(array: np.dtype, leaf: np.dtype) -> bool:
    """Whether a leaf of this type holds the array rounded."""
    return array != leaf and array.kind in "fV" and leaf.kind in "fV" and leaf.itemsize <= array.itemsize


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in a leaf's type, if that is the narrower."""
    return array.astype(dtype) if narrows(array.dtype, dtype) else array
