"""What a compiled program moves, read off its HLO text: collectives by kind, and traffic with the chip's memory.

XLA's own cost analysis counts the body of a loop once; here every instruction counts as often as it runs.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from twinstep.errors import RunError

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "s64": 64, "u64": 64, "f64": 64}
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
COLLECTIVE = re.compile(rf"^({KINDS})(-start)?$")
SHAPE = re.compile(r"\b(pred|bf16|[fsu]\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?")
CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
PARTS = ("slice", "dynamic-slice", "gather")  # read as much of their first operand as they return
OPERAND = re.compile(r"%([\w.\-]+)")
SCOPE = re.compile(r'op_name="([^"]*)"')
NO_TRAFFIC = re.compile(r"^(parameter|tuple|get-tuple-element|bitcast|constant|after-all|while|conditional|.*-done)$")


class Instruction(NamedTuple):
    """One instruction of a compiled program."""

    name: str
    result: str  # its type, as text
    operation: str
    rest: str  # operands and attributes, as text

    @property
    def operands(self) -> list[str]:
        return OPERAND.findall(self.rest.split("), ")[0])

    def called(self, role: str | None = None) -> list[str]:
        """Names of the computations that it calls, or of those in one role: "body", "condition" and so on."""
        calls = CALLED.findall(self.rest)
        return [name for r, many, one in calls if role in (None, r) for name in re.findall(r"[\w.\-]+", many or one)]


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
            trips = trip_count(found, found[name], instruction) if instruction.operation == "while" else 1
            for other in filter(found.__contains__, instruction.called()):
                if name in outside and instruction.operation in ("while", "conditional", "call"):
                    outside.add(other)
                visit(other, count * trips)

    visit(entry, 1)
    return times, outside


def trip_count(found: dict[str, list[Instruction]], around: list[Instruction], loop: Instruction) -> int:
    """How often a loop runs: as noted by XLA, or by the bound that its counter is compared with.

    Raises RunError where neither tells; a loop counted once would be a wrong figure.
    """
    if noted := TRIPS.search(loop.rest):
        return int(noted[1])
    condition = {i.name: i for name in loop.called("condition") for i in found[name]}
    last = list(condition.values())[-1]
    if last.operation == "compare" and "direction=LT" in last.rest:
        counter, bound = (condition[name] for name in last.operands)
        index = re.search(r"index=(\d+)", counter.rest)
        if index and bound.operation == "constant":
            by_name = {i.name: i for i in around}
            first = by_name[by_name[loop.operands[0]].operands[int(index[1])]]
            while first.operation in ("copy", "bitcast"):
                first = by_name[first.operands[0]]
            if first.operation == "constant":
                return int(bound.rest.split(")")[0]) - int(first.rest.split(")")[0])
    raise RunError(
        f"cannot tell how often the loop {loop.name} of the compiled program runs, so its traffic cannot be counted; "
        "report the topology and the flags"
    )


def collectives(text: str, scope: str = "") -> list[Collective]:
    """All exchanges of one run of the program, or those of one `jax.named_scope`, by kind, the largest first.

    A TPU's compiler splits an asynchronous all-gather into several fusions that each repeat it (counted where it
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
            match, place = COLLECTIVE.match(instruction.operation), SCOPE.search(instruction.rest)
            if match and scope in (place[1] if place else ""):
                kind = "reduce-scatter" if "all-reduce-scatter" in name else match[1]
                sizes[kind] += [payload(instruction, match[1], match[2] is not None)] * times[name]
    found_kinds = [Collective(kind, sum(s), max(s), len(s)) for kind, s in sizes.items() if s]
    return sorted(found_kinds, key=lambda c: -c.bytes)


def payload(instruction: Instruction, kind: str, is_start: bool) -> int:
    """Bytes of one exchange; see `Collective`."""
    sizes = [size for size, _ in array_bytes(instruction.result)]
    if is_start and kind != "all-reduce":  # operands and results in one tuple
        operands = sum(sizes[: len(sizes) // 2])
        if kind == "collective-permute":
            return max(sizes)
        return operands if kind == "reduce-scatter" else sum(sizes) - operands
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

    What is in the fast memory (layouts with S(n), n > 0) does not count. Of an array of which a part is read, or
    updated in its place, the part counts: a loop over stacked weights sees one at a time.
    """
    found, entry = computations(text)
    times, outside = runs(found, entry)
    total = 0
    for name in outside:
        sizes = {i.name: sum(size for size, fast in array_bytes(i.result) if not fast) for i in found[name]}
        for instruction in found[name]:
            if NO_TRAFFIC.match(instruction.operation):
                continue
            fusion = instruction.operation == "fusion"
            body = found[instruction.called("calls")[0]] if fusion else [instruction]
            total += times[name] * moved_bytes(instruction, body, sizes)
    return total


def moved_bytes(instruction: Instruction, body: list[Instruction], sizes: dict[str, int]) -> int:
    """Bytes that one instruction reads and writes. body: of a fusion, else the instruction alone.

    sizes: of the arrays around it, as far as they lie in main memory.
    """
    if instruction.operation == "slice-start":  # its tuple holds the operand, then the slice
        size, fast = array_bytes(instruction.result[instruction.result.rfind("),") :])[0]
        return size if fast else 2 * size
    if instruction.operation.endswith("-start"):  # its tuple holds what is read and what is written
        return sum(size for size, fast in array_bytes(instruction.result) if not fast)
    by_name = {i.name: i for i in body}
    inner = {i.name: sum(size for size, _ in array_bytes(i.result)) for i in body}

    def read(name: str, size: int) -> int:
        total = 0
        for user in (i for i in body if name in i.operands):
            if user.operation == "bitcast":
                total += read(user.name, size)
            elif user.operation in PARTS and name not in user.operands[1:]:
                total += inner[user.name]
            elif user.operation != "dynamic-update-slice" or name in user.operands[1:]:
                return size
        return min(total, size)

    def written(name: str, size: int) -> int:
        made = by_name.get(name)
        if made is not None and made.operation == "bitcast":
            return written(made.operands[0], size)
        if made is not None and made.operation == "dynamic-update-slice":
            return min(inner.get(made.operands[1], sizes.get(made.operands[1], 0)), size)
        return size

    operands, root = instruction.operands, body[-1]
    names = operands
    if instruction.operation == "fusion":
        parameters = {int(i.rest.split(")")[0]): i.name for i in body if i.operation == "parameter"}
        names = [parameters[number] for number in range(len(operands))]
    results = root.operands if root.operation == "tuple" else [root.name]
    arrays = [0 if fast else size for size, fast in array_bytes(instruction.result)]
    total = sum(read(name, sizes.get(operand, 0)) for name, operand in zip(names, operands, strict=True))
    if len(results) != len(arrays):  # a result of an instruction that makes several
        return total + sum(arrays)
    return total + sum(written(name, size) for name, size in zip(results, arrays, strict=True))


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
