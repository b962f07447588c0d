"""What a program compiled for a GPU launches in one step, read off its HLO text: kernels, products, large buffers.

Every fusion, library call and copy of the text counts as one kernel, and as often as it runs. It is an estimate: a
library may launch several for one call.

Shapes: B sequences of a micro-step on one chip, T time, H query heads, V vocabulary, L layers.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from jax_impl.aot.hlo import COLLECTIVE, SHAPE, Instruction, array_bytes, computations, runs

TARGET = re.compile(r'custom_call_target="([^"]+)"')
FUSION_KIND = re.compile(r'"fusion_backend_config":\{"kind":"(\w+)"')
NO_KERNEL = re.compile(
    r"^(parameter|tuple|get-tuple-element|bitcast|constant|after-all|while|conditional|call|optimization-barrier"
    r"|partition-id|replica-id|.*-done|.*-update)$"
)
ATTENTION = "__cudnn$fmha"
SCOPE_OF_OPTIMIZER = "/optimizer/"


class Product(NamedTuple):
    """Matrix products of one kind: by whom they are computed, from what, and how often in a step."""

    kind: str
    operands: str  # their dtype
    times: int
    optimizer: int  # of these in the optimizer: Newton-Schulz


class Buffer(NamedTuple):
    """Arrays of one shape, in the chip's memory."""

    what: str
    shape: str
    bytes: int  # of one
    times: int  # how often one is written in a step


def launched(text: str) -> Iterator[tuple[Instruction, list[Instruction], int]]:
    """Every instruction that is a kernel, the body of its fusion or what stands around it, and how often it runs.

    A loop's condition is left out: a loop of known length is not asked whether to go on.
    """
    found, entry = computations(text)
    times, outside = runs(found, entry)
    loops = [i for instructions in found.values() for i in instructions if i.operation == "while"]
    conditions = {name for loop in loops for name in loop.called("condition")}
    for name in outside - conditions:
        for instruction in found[name]:
            if not NO_KERNEL.match(instruction.operation):
                fusion = instruction.operation == "fusion"
                yield instruction, found[instruction.called("calls")[0] if fusion else name], times[name]


def kernels(text: str) -> dict[str, int]:
    """How many kernels of each sort a step launches."""
    counts: Counter[str] = Counter()
    for instruction, body, times in launched(text):
        counts[sort_of(instruction, body)] += times
    return dict(counts.most_common())


def sort_of(instruction: Instruction, body: list[Instruction]) -> str:
    """products, attention, fusions, copies, collectives or other."""
    if product_kind(instruction, body):
        return "products"
    if ATTENTION in instruction.rest:
        return "attention"
    if COLLECTIVE.match(instruction.operation):
        return "collectives"
    return {"fusion": "fusions", "copy": "copies"}.get(instruction.operation, "other")


def product_kind(instruction: Instruction, body: list[Instruction]) -> str | None:
    """Who computes this matrix product; None for what is none. Attention's own are inside cuDNN's kernel."""
    if instruction.operation == "dot":
        return "other"
    if instruction.operation == "custom-call" and (target := TARGET.search(instruction.rest)):
        return f"cuBLAS ({target[1]})" if target[1].startswith("__cublas") else None
    if instruction.operation != "fusion":
        return None
    kind = FUSION_KIND.search(instruction.rest)
    if kind and "gemm" in kind[1]:
        return "Triton fusion"
    if kind and kind[1].startswith("__cudnn"):
        return "cuDNN fusion"
    return "other" if any(i.operation == "dot" for i in body) else None


def operand_type(instruction: Instruction, body: list[Instruction]) -> str:
    """The dtype of a product's first operand."""
    fusion = instruction.operation == "fusion"
    product = next((i for i in body if fusion and i.operation == "dot"), instruction)
    operand = next((i for i in body if i.name == product.operands[0]), None)
    dtype = SHAPE.search(operand.result) if operand else None
    return dtype[1] if dtype else "unknown"


def products(text: str) -> list[Product]:
    """All matrix products of a step, by kind and dtype."""
    total: Counter[tuple[str, str]] = Counter()
    optimizer: Counter[tuple[str, str]] = Counter()
    for instruction, body, times in launched(text):
        if kind := product_kind(instruction, body):
            key = kind, operand_type(instruction, body)
            total[key] += times
            optimizer[key] += times if SCOPE_OF_OPTIMIZER in instruction.rest else 0
    return [Product(*key, times, optimizer[key]) for key, times in total.most_common()]


def large_buffers(text: str, B: int, T: int, H: int, V: int, L: int) -> list[Buffer]:
    """Arrays of a micro-step that should not be: all attention scores (of one layer or all), all logits."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for instruction, _, times in launched(text):
        for match in SHAPE.finditer(instruction.result):
            dims = [int(dim) for dim in match[2].split(",") if dim]
            if what := what_is_large(dims, B, T, H, V, L):
                counts[what, f"{match[1]}[{match[2]}]", array_bytes(match[0])[0][0]] += times
    found = [Buffer(*key, times) for key, times in counts.items()]
    return sorted(found, key=lambda buffer: -buffer.bytes)


def what_is_large(dims: list[int], B: int, T: int, H: int, V: int, L: int) -> str | None:
    """By the number of elements and the dimensions, however XLA has merged and ordered them."""
    size = 1
    for dim in dims:
        size *= dim
    if V in dims:
        return "B x T x V, all logits" if size == B * T * V else None
    merged = sum(dim % T == 0 for dim in dims) >= 2
    sizes = [B * H * T * T, L * B * H * T * T] if dims[:1] == [L] else [B * H * T * T]  # a loop stacks what it keeps
    if merged and T in dims and size in sizes:
        return "T x T per head and sequence, attention scores"
    return None
