"""Bytes that the operations of an optimised TPU program move from and to HBM.

Read from the text of the program that the compiler ends with. An operation moves what it reads of
its operands and what it writes of its results, in the physical layout, tiles padded; buffers that
the compiler placed in VMEM move nothing, and the copies between the two memories are operations of
their own. Inside a fusion nothing moves. A gather, slice or scatter moves the rows it touches.
Kernels are left to the caller, who knows what they do.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([^\s]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_ARRAY = re.compile(r"\b(pred|bf16|token|[a-z]+?\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_LAYOUT = re.compile(r"\{([\d,]*)(?::(?:T\(([\d,]+)\))?[^S]*(?:S\((\d+)\))?.*)?\}")
RARELY = "rarely"
"""Name, by `jax.named_scope`, of branches that exceptions take: no account of bytes has them."""

_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?(%[^\s,}]+(?:, ?%[^\s,}]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%([^\s,}]+)")
_NUMBER = re.compile(r"(\d+)\)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_KERNEL = "tpu_custom_call"

# Names for what is there already.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
}
# Room that later operations write into.
_FREE_TARGETS = {"AllocateBuffer"}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array of the program: its bytes in its layout, and whether it lies in HBM."""

    bytes: int
    in_hbm: bool

    @property
    def moved(self) -> int:
        """Bytes that reading or writing it all moves."""
        return self.bytes if self.in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: without the percent sign.
        opcode: such as "fusion".
        type: the text of its type.
        operands: names of the instructions it takes.
        attributes: the rest of its text.
        is_root: whether its computation returns it.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The arrays it results in."""
        return tuple(_buffers(self.type))

    @property
    def shape(self) -> tuple[str, ...]:
        """Element types and dimensions of its results: "bf16[8,128]"."""
        return tuple(f"{match[1]}[{match[2]}]" for match in _ARRAY.finditer(self.type))

    @property
    def called(self) -> tuple[str, ...]:
        """The computations it calls, conditions of loops left out."""
        names = _CALLED.findall(self.attributes)
        return tuple(name.strip().lstrip("%") for group in names for name in group.split(","))

    @property
    def target(self) -> str:
        """The target of a custom call; "" for other instructions."""
        found = _TARGET.search(self.attributes) if self.opcode == "custom-call" else None
        return found[1] if found else ""

    @property
    def is_free(self) -> bool:
        """Returns whether it moves nothing, or what was counted at its start."""
        ends = self.opcode.endswith(("-done", "-update"))
        return ends or self.opcode in _FREE or self.target in _FREE_TARGETS

    @property
    def is_kernel(self) -> bool:
        """Returns whether it is a Pallas kernel."""
        return self.target == _KERNEL


@dataclasses.dataclass(frozen=True)
class Movement:
    """Bytes that one instruction moves, all its executions together.

    Attributes:
        name: of the instruction.
        category: "kernel", "gather", "scatter", "copy", "sort" or "other".
        executions: how often it runs.
        bytes: read and written; 0 for kernels.
    """

    name: str
    category: str
    executions: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Execution:
    """An instruction that runs.

    Attributes:
        instruction: what runs.
        computation: name of the computation that it stands in.
        category: as of a movement.
        executions: how often it runs.
        bytes: as of a movement.
    """

    instruction: Instruction
    computation: str
    category: str
    executions: int
    bytes: int


class HloProgram:
    """An optimised program, parsed from its text."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._parse(text)

    def _parse(self, text: str) -> None:
        current: dict[str, Instruction] = {}
        pending: list[str] = []

        def finish() -> None:
            if pending:
                instruction = _parse_instruction(re.sub(r"/\*.*?\*/", "", "".join(pending)))
                current[instruction.name] = instruction
                pending.clear()

        for line in text.splitlines():
            if _INSTRUCTION.match(line):
                finish()
                pending.append(line)
            elif _END.match(line):
                finish()
            elif match := _COMPUTATION.match(line):
                current = {}
                self.computations[match[2]] = current
                if match[1]:
                    self.entry = match[2]
            elif pending:
                pending.append(line)
        if not self.entry:
            raise ValueError("the text is no optimised HLO module: it has no entry computation")

    def kernels(self) -> list[Instruction]:
        """The Pallas kernels, in program order."""
        return [
            instruction
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.is_kernel
        ]

    def operand_buffers(self, instruction: Instruction) -> list[Buffer]:
        """The arrays that an instruction takes."""
        for computation in self.computations.values():
            if computation.get(instruction.name) is instruction:
                return [b for name in instruction.operands for b in computation[name].buffers]
        raise ValueError(f"no instruction {instruction.name}")

    def movements(self) -> list[Movement]:
        """Lists what every instruction that runs moves, in program order."""
        return [
            Movement(run.instruction.name, run.category, run.executions, run.bytes)
            for run in self.executed()
        ]

    def executed(self) -> list[Execution]:
        """Lists what runs, in program order, a fusion as one instruction.

        Of a conditional the branch counts that moves most, of those that do not run `RARELY`. How
        often a loop runs is what the compiler says, or the bound that its counter is compared with;
        otherwise it counts once.
        """
        return list(self._executed(self.entry, 1))

    def _executed(self, name: str, executions: int) -> Iterator[Execution]:
        computation = self.computations[name]
        for instruction in computation.values():
            opcode = instruction.opcode
            if instruction.is_free:
                continue
            if opcode == "while":
                times = executions * self._trips(instruction)
                for called in instruction.called:
                    yield from self._executed(called, times)
            elif opcode == "conditional":
                branches = [
                    list(self._executed(called, executions))
                    for called in instruction.called
                    if not self._is_rare(called)
                ]
                yield from max(branches, key=lambda runs: sum(run.bytes for run in runs))
            elif opcode in ("call", "call-start", "async-start"):
                for called in instruction.called:
                    yield from self._executed(called, executions)
            elif instruction.is_kernel:
                yield Execution(instruction, name, "kernel", executions, 0)
            else:
                size = self._bytes(instruction, computation)
                category = self._category(instruction)
                yield Execution(instruction, name, category, executions, size * executions)

    def _is_rare(self, name: str) -> bool:
        computation = self.computations[name].values()
        return any(f"/{RARELY}/" in instruction.attributes for instruction in computation)

    def _trips(self, loop: Instruction) -> int:
        """Returns how often a loop runs: jax counts from 0 up to a bound that the condition holds.

        Once where the condition is another one.
        """
        if known := _TRIPS.search(loop.attributes):
            return int(known[1])
        named = _CONDITION.search(loop.attributes)
        condition = self.computations.get(named[1], {}) if named else {}
        root = next((inner for inner in condition.values() if inner.is_root), None)
        if root is None:
            return 1
        comparison, operands = root, [condition[name] for name in root.operands]
        if root.opcode == "fusion":
            called = self.computations[root.called[0]]
            [comparison] = [inner for inner in called.values() if inner.is_root]
            operands = [_behind_parameter(called[name], operands) for name in comparison.operands]
        if comparison.opcode != "compare" or "direction=LT" not in comparison.attributes:
            return 1
        bound = operands[1]
        number = _NUMBER.match(bound.attributes) if bound.opcode == "constant" else None
        return max(int(number[1]), 1) if number else 1

    def _category(self, instruction: Instruction) -> str:
        opcodes = {instruction.opcode}
        for called in instruction.called:
            opcodes |= {self._category(inner) for inner in self.computations[called].values()}
        for category in ("scatter", "gather", "sort", "copy"):
            if any(opcode.startswith(category) for opcode in opcodes):
                return category
        return "copy" if instruction.opcode == "slice-start" else "other"

    def _bytes(self, instruction: Instruction, computation: dict[str, Instruction]) -> int:
        operands = [computation[name] for name in instruction.operands]
        if instruction.opcode == "copy-start":
            # Its type is the destination, the source, and a flag.
            return sum(buffer.moved for buffer in instruction.buffers[:2])
        if instruction.opcode == "slice-start":
            # The source, of which it copies a part, the part, and a flag.
            source, part, *_ = instruction.buffers
            return part.bytes * (source.in_hbm + part.in_hbm)
        if instruction.opcode == "fusion":
            called = self.computations[instruction.called[0]]
            reads = self._parameter_reads(called)
            total = sum(
                min(reads.get(i, 0), _size(operand)) if _in_hbm(operand) else 0
                for i, operand in enumerate(operands)
            )
            return total + self._writes(instruction, called)
        reads_written = _rows(instruction, computation)
        if reads_written is not None:
            reads_by_operand, written = reads_written
            total = sum(
                size
                for size, operand in zip(reads_by_operand, operands, strict=True)
                if _in_hbm(operand)
            )
            return total + (written if _in_hbm(instruction) else 0)
        outputs = sum(buffer.moved for buffer in instruction.buffers)
        return outputs + sum(b.moved for operand in operands for b in operand.buffers)

    def _writes(self, instruction: Instruction, called: dict[str, Instruction]) -> int:
        """Bytes that a fusion writes: of an array updated in place only the rows it touches."""
        [root] = [inner for inner in called.values() if inner.is_root]
        results = [called[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(results) != len(instruction.buffers):
            return sum(buffer.moved for buffer in instruction.buffers)
        total = 0
        for result, buffer in zip(results, instruction.buffers, strict=True):
            rows = _rows(_behind_bitcasts(result, called), called)
            total += min(rows[1], buffer.bytes) * buffer.in_hbm if rows else buffer.moved
        return total

    def _parameter_reads(self, called: dict[str, Instruction]) -> dict[int, int]:
        """Bytes that a fused computation reads of each parameter."""
        reads = {}
        for parameter in called.values():
            if parameter.opcode == "parameter":
                number = int(parameter.attributes.split(")")[0] or 0)
                reads[number] = self._reads_of(parameter, called)
        return reads

    def _reads_of(self, value: Instruction, called: dict[str, Instruction]) -> int:
        whole, total = _size(value), 0
        for user in called.values():
            for position, name in enumerate(user.operands):
                if name != value.name:
                    continue
                rows = _rows(user, called)
                if user.opcode in ("bitcast", "reshape"):
                    total += self._reads_of(user, called)
                elif user.opcode == "fusion":
                    inner = self.computations[user.called[0]]
                    total += self._parameter_reads(inner).get(position, 0)
                elif rows is not None:
                    total += rows[0][position]
                else:
                    total += whole
        return min(total, whole)


def _parse_instruction(text: str) -> Instruction:
    head = _INSTRUCTION.match(text)
    if head is None:
        raise ValueError(f"not an instruction: {text[:80]!r}")
    rest = text[head.end() :]
    end = _balanced(rest, 0) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _balanced("(" + rest, 0) - 1
    inside, attributes = rest[: end - 1], rest[end:]
    operands = tuple(re.findall(r"%([^\s,)]+)", inside))
    if opcode in ("parameter", "constant"):
        attributes = inside + ")" + attributes
    return Instruction(head[2], opcode, type_, operands, attributes, bool(head[1]))


def _balanced(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i + 1
    raise ValueError(f"unbalanced parentheses: {text[:80]!r}")


def _buffers(type_: str) -> Iterator[Buffer]:
    for match in _ARRAY.finditer(type_):
        element, dimensions, layout = match.groups()
        dims = [int(d) for d in dimensions.split(",") if d]
        space = None
        if layout and (parsed := _LAYOUT.match(layout)):
            order, tile, space = parsed.groups()
            if order and tile:
                dims = _padded(dims, order, tile)
        yield Buffer(math.prod(dims) * _bits(element) // 8, space in (None, "0"))


def _padded(dims: list[int], order: str, tile: str) -> list[int]:
    """Dimensions from major to minor, those that tiles cover rounded up to whole tiles."""
    physical = [dims[int(i)] for i in order.split(",")][::-1]
    tiles = [int(t) for t in tile.split(",")]
    if len(physical) < len(tiles):
        physical = [1] * (len(tiles) - len(physical)) + physical
    for i, unit in zip(range(-len(tiles), 0), tiles, strict=True):
        physical[i] = -(-physical[i] // unit) * unit
    return physical


def _bits(element: str) -> int:
    if element in ("pred", "token"):
        return 8 if element == "pred" else 0
    digits = re.search(r"\d+", element)
    return int(digits[0]) if digits else 0


def _size(instruction: Instruction) -> int:
    return sum(buffer.bytes for buffer in instruction.buffers)


def _in_hbm(instruction: Instruction) -> bool:
    return any(buffer.in_hbm for buffer in instruction.buffers)


def _behind_parameter(value: Instruction, given: list[Instruction]) -> Instruction:
    """Returns what a parameter of a fused computation stands for; other values as they are."""
    if value.opcode != "parameter":
        return value
    return given[int(value.attributes.split(")")[0])]


def _behind_bitcasts(value: Instruction, called: dict[str, Instruction]) -> Instruction:
    while value.opcode in ("bitcast", "reshape") and value.operands[0] in called:
        value = called[value.operands[0]]
    return value


def _rows(
    instruction: Instruction, computation: dict[str, Instruction]
) -> tuple[list[int], int] | None:
    """Bytes read of each operand, and written, by operations that touch only some rows."""
    sizes = [_size(computation[name]) for name in instruction.operands]
    out = _size(instruction)
    match instruction.opcode:
        case "gather":
            return [out, sizes[1]], out
        case "dynamic-slice" | "slice":
            return [out, *sizes[1:]], out
        case "dynamic-update-slice":
            return [0, *sizes[1:]], sizes[1]
        case "scatter":
            # Touched rows are read, combined with the updates, and written.
            n = (len(sizes) - 1) // 2
            updates = sizes[n + 1 :]
            return [*updates, sizes[n], *updates], sum(updates)
    return None
