"""What a compiled program moves, read off its HLO text: collectives by kind, and traffic with the chip's memory.

XLA's own cost analysis counts the body of a loop once; here every instruction counts as often as it runs.
"""

import re
from collections import defaultdict
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "s64": 64, "u64": 64, "f64": 64}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
COLLECTIVE = re.compile(rf"^({KINDS})(-start)?$")
SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NO_TRAFFIC = re.compile(r"^(parameter|tuple|get-tuple-element|bitcast|constant|after-all|while|conditional|.*-done)$")


class Instruction(NamedTuple):
    name: str
    result: str  # its type, as text
    operation: str
    rest: str  # operands and attributes, as text


class Collective(NamedTuple):
    """One kind of exchange. `bytes` is the whole array that is gathered, reduced or scattered; for all-to-all and
    collective-permute, the part of it that one chip holds."""

    kind: str
    bytes: int
    largest: int  # bytes of the largest single exchange
    times: int


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation by name, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = header[2]
            found[current] = []
            entry = current if header[1] else entry
        elif current and (instruction := INSTRUCTION.match(line)):
            found[current].append(Instruction(*instruction.groups()))
    return found, entry


def runs(found: dict[str, list[Instruction]], entry: str) -> tuple[dict[str, int], set[str]]:
    """How often each computation runs, and which of them are not part of a fusion."""
    times: dict[str, int] = defaultdict(int)
    outside = {entry}

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in found[name]:
            trips = TRIPS.search(instruction.rest)
            for called in CALLED.findall(instruction.rest):
                for other in re.findall(r"[\w.\-]+", called):
                    if other in found:
                        if name in outside and instruction.operation in ("while", "conditional", "call"):
                            outside.add(other)
                        visit(other, count * (int(trips[1]) if trips and instruction.operation == "while" else 1))

    visit(entry, 1)
    return times, outside


def collectives(text: str) -> list[Collective]:
    """All exchanges of one run of the program, by kind, the largest first.

    A TPU's compiler spreads an asynchronous gather over several fusions that each repeat it (counted where it
    starts), and writes a reduce-scatter as a fusion around an all-reduce.
    """
    found, entry = computations(text)
    times, _ = runs(found, entry)
    sizes: dict[str, list[int]] = defaultdict(list)
    for name, instructions in found.items():
        body = " ".join(instruction.rest for instruction in instructions)
        starts = "AsyncCollectiveStart" in body
        if not starts and ("AsyncCollectiveDone" in body or name.startswith("async_collective_fusion")):
            continue
        for instruction in instructions:
            if match := COLLECTIVE.match(instruction.operation):
                kind = "reduce-scatter" if "all-reduce-scatter" in name else match[1]
                sizes[kind] += [payload(instruction, match[1], match[2] is not None)] * times[name]
    found_kinds = [Collective(kind, sum(s), max(s), len(s)) for kind, s in sizes.items() if s]
    return sorted(found_kinds, key=lambda c: -c.bytes)


def payload(instruction: Instruction, kind: str, is_start: bool) -> int:
    """Bytes of one exchange; see `Collective`."""
    sizes = [size for size, _ in array_bytes(instruction.result)]
    if is_start and kind != "all-reduce":  # operands and results in one tuple
        return max(sizes) if kind == "collective-permute" else sum(sizes) - sum(sizes[: len(sizes) // 2])
    return sum(sizes) * (group_size(instruction.rest) if kind == "reduce-scatter" else 1)


def group_size(rest: str) -> int:
    """How many chips take part in one exchange, from its `replica_groups` in any of the three notations."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sides = {name: int(side) for name, side in re.findall(r"('\w+')=(\d+)", match[1])}
        size = 1
        for name in re.findall(r"'\w+'", match[2]):
            size *= sides[name]
        return size
    return 1


def memory_bytes(text: str) -> int:
    """Bytes that the program reads from and writes to the chip's main memory, operand by operand.

    What lies in the fast memory (layouts with S(n), n > 0) does not count. An upper bound where an instruction reads
    a part of its operand.
    """
    found, entry = computations(text)
    times, outside = runs(found, entry)
    total = 0
    for name in outside:
        sizes = {i.name: sum(size for size, fast in array_bytes(i.result) if not fast) for i in found[name]}
        for instruction in found[name]:
            if NO_TRAFFIC.match(instruction.operation):
                continue
            operands = re.findall(r"%([\w.\-]+)", instruction.rest.split("), ")[0])
            moved = sizes[instruction.name] + sum(sizes.get(operand, 0) for operand in operands)
            if instruction.operation.endswith("-start"):  # its tuple repeats the operands
                moved = sizes[instruction.name]
            total += moved * times[name]
    return total


def array_bytes(result: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a type, and whether it lies in fast memory."""
    found = []
    for dtype, dims, layout in SHAPE.findall(result):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        found.append((count * BITS.get(dtype, 8 if dtype.startswith("f8") else 32 if "32" in dtype else 8) // 8,
                      bool(re.search(r"S\([1-9]", layout))))  # fmt: skip
    return found
