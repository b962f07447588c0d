"""Any torch code truly in float64, although it casts to narrower numbers inside."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from parity.lines.frames import running_lines
from parity.lines.line import Line

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


@contextmanager
def widened() -> Iterator[list[Line]]:
    """Within it every torch operation that would make narrower floating numbers makes float64 ones.

    Yields the lines that cast, each once, filled as the code runs: the innermost frame outside torch and parity.
    Tensors made before are widened where they are read and keep their own dtype: `widen_module` first. What was
    compiled runs as it is written.
    """
    lines: dict[Line, None] = {}
    casts: list[Line] = []

    def note() -> None:
        if (cast := running_lines()[0]) is not None and cast not in lines:
            lines[cast] = None
            casts.append(cast)

    default = torch.get_default_dtype()
    compiled = "torch._dynamo" in sys.modules
    torch.set_default_dtype(torch.float64)
    try:
        with (
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
            WidenCalls(note),
            WidenOperations(note, default),
        ):
            yield casts
    finally:
        torch.set_default_dtype(default)


class WidenOperations(TorchDispatchMode):
    """Below autograd and autocast: the dtypes and the tensors that an operation is given become float64."""

    def __init__(self, note: Callable[[], None], default: torch.dtype) -> None:
        super().__init__()
        self.note, self.default = note, default

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The operation, in float64."""
        kwargs = kwargs or {}
        schema = func._schema.arguments
        written = {a.name for a in schema if a.alias_info is not None and a.alias_info.is_write}
        if not written and any(a.alias_info is not None for a in schema):
            return func(*args, **kwargs)  # a view: it shows the memory of its own tensor
        written |= {"running_mean", "running_var"}  # batch norms that update them do not all say so
        given = dict(zip((a.name for a in schema), args, strict=False)) | kwargs
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []  # narrow tensors that are written, and what is written

        def widen(value: Any, name: str) -> Any:
            if isinstance(value, list | tuple):
                return type(value)([widen(part, name) for part in value])
            if isinstance(value, torch.Tensor) and value.dtype in WIDE:
                wide = value.to(WIDE[value.dtype])
                if name in written:
                    copies.append((value, wide))
                return wide
            return WIDE.get(value, value) if isinstance(value, torch.dtype) else value

        wide = {name: widen(value, name) for name, value in given.items()}
        function = grouped_mm if func is torch.ops.aten._grouped_mm.default else func  # torch has none in float64
        output = function(*(wide[a.name] for a, _ in zip(schema, args, strict=False)), **{k: wide[k] for k in kwargs})
        if any(isinstance(value, torch.dtype) and value in WIDE for value in given.values()) or (
            self.default in WIDE and takes_default_dtype(schema, given) and output.dtype.is_floating_point
        ):
            self.note()
        if not copies:
            return output
        for narrow, values in copies:
            narrow.copy_(values)
        originals = {id(values): narrow for narrow, values in copies}
        return tree_map(lambda x: originals.get(id(x), x), output)


class WidenCalls(TorchFunctionMode):
    """What reaches the operations too late: a number read at a dtype, tensors whose dtypes are compared before."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The call, with float64 numbers."""
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("dtype") in WIDE:
            kwargs["dtype"] = WIDE[kwargs["dtype"]]
            self.note()
        elif func is nn.functional.scaled_dot_product_attention:
            args, kwargs = tree_map(wide_tensor, (args, kwargs))
        return func(*args, **kwargs)


def takes_default_dtype(schema: Any, given: dict[str, Any]) -> bool:
    """Whether an operation makes a tensor from none, and is not told of which dtype."""
    return (
        given.get("dtype") is None
        and any(a.name == "dtype" for a in schema)
        and not any(isinstance(value, torch.Tensor) for value in given.values())
    )


def wide_tensor(value: Any) -> Any:
    """A tensor of narrower floating numbers in float64; anything else as it is."""
    return value.to(WIDE[value.dtype]) if isinstance(value, torch.Tensor) and value.dtype in WIDE else value


def grouped_mm(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """`torch._grouped_mm`, product by product: `offs` holds the ends of the groups in the dimension that they split."""
    if offs is None:
        return torch.bmm(a, b)
    ends = offs.tolist()
    groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if a.ndim == 2 and b.ndim == 3:  # rows of a
        output = a.new_zeros(a.shape[0], b.shape[2])
        for i, group in enumerate(groups):
            output[group] = a[group] @ b[i]
        return output
    if a.ndim == 3:  # columns of b
        output = a.new_zeros(a.shape[1], b.shape[1])
        for i, group in enumerate(groups):
            output[:, group] = a[i] @ b[:, group]
        return output
    return torch.stack([a[:, group] @ b[group] for group in groups])


def widen_module(module: nn.Module) -> None:
    """Every floating parameter, buffer and tensor kept as an attribute becomes float64, in place.

    So do tensors in lists, tuples and dicts. What is tied stays tied: one tensor becomes one tensor.
    """
    seen: dict[int, tuple[Any, Any]] = {}  # by identity; the old value is kept, lest its identity be given again

    def widen(value: Any) -> Any:
        if id(value) in seen:
            return seen[id(value)][1]
        wide: Any = value
        if isinstance(value, nn.Parameter):
            value.data = wide_tensor(value.data)
            value.grad = wide_tensor(value.grad)
        elif isinstance(value, torch.Tensor):
            wide = wide_tensor(value)
        elif type(value) in (list, dict):
            seen[id(value)] = value, wide
            for key in range(len(value)) if isinstance(value, list) else list(value):
                value[key] = widen(value[key])
        elif isinstance(value, tuple):
            parts = [widen(part) for part in value]
            same = all(new is old for new, old in zip(parts, value, strict=True))
            wide = value if same else type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        else:
            return value
        seen[id(value)] = value, wide
        return wide

    for part in module.modules():
        for name, value in list(vars(part).items()):
            vars(part)[name] = widen(value)
