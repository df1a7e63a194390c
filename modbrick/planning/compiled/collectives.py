"""Bytes that the collectives of a compiled step move, read from the program's text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from pallas_kernels.compile_report.hlo import Execution, HloProgram, Instruction

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

SCATTERING = "all-reduce-scatter"
"""Begins the name of a fusion of an all-reduce and of the part that a device keeps of it.

So the compiler writes a sum of which it sends each device only its part.
"""

_BITS = re.compile(r"(pred|[a-z]+?(\d+)[a-z0-9]*)\[([\d,]*)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_GATHERS = re.compile(r'op_name="[^"]*/all_gather"')
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, all its executions together.

    Attributes:
      kind: of `KINDS`.
      group: devices that take part together with device 0 or the first one, as places in the mesh.
      axes: mesh axes along which they differ, joined by `+`.
      executions: how often it runs in a step.
      bytes: that each device receives from others, over all executions.
      asynchronous: whether the compiler runs other work meanwhile.
      gathers: whether it is a gather that the compiler made an all-reduce, of arrays as large as
        the result and zero outside of each device's part; twice the bytes.
    """

    kind: str
    group: tuple[int, ...]
    axes: str
    executions: int
    bytes: float
    asynchronous: bool
    gathers: bool


def read_collectives(program: HloProgram, mesh: Mapping[str, int]) -> list[Collective]:
    """Returns the collectives of one step.

    Bytes are those of the best algorithm on a ring or a torus: of n devices, each receives
    (n - 1)/n of the gathered array, of the array to be reduced and scattered, and of what is
    exchanged all to all, and twice that of an array that all reduce. Of a ragged exchange the
    smaller of its two buffers counts, as if tokens were spread evenly over the devices.

    Args:
      program: the compiled step.
      mesh: sizes of the axes, in order.
    """
    found = []
    for run in program.executed():
        for instruction, asynchronous in _collectives_of(run, program):
            home = _home(run, instruction, program)
            computation = program.computations[home]
            group = _group(instruction.attributes, mesh)
            if len(group) < 2:
                continue
            kind = instruction.opcode.removesuffix("-start")
            if kind == "all-reduce" and home.startswith(SCATTERING):
                kind = "reduce-scatter"
            sizes = [_bytes(computation[name]) for name in instruction.operands]
            found.append(
                Collective(
                    kind=kind,
                    group=group,
                    axes=_axes(group, mesh),
                    executions=run.executions,
                    bytes=run.executions * _received(kind, sizes, len(group)),
                    asynchronous=asynchronous,
                    gathers=kind == "all-reduce" and bool(_GATHERS.search(instruction.attributes)),
                )
            )
    return found


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
    """Collectives of one kind over the same axes.

    Attributes:
      kind: of `KINDS`.
      axes: see `Collective`.
      executions: in a step.
      bytes: that each device receives in a step.
      asynchronous_bytes: of these, while other work runs.
      gathering_bytes: of these, of gathers that the compiler made all-reduces.
      seconds: that they take at the bandwidth of the links.
    """

    kind: str
    axes: str
    executions: int
    bytes: float
    asynchronous_bytes: float
    gathering_bytes: float
    seconds: float


def total_by_kind(collectives: Iterable[tuple[Collective, float]]) -> tuple[CollectiveTotal, ...]:
    """Adds up collectives, given with the seconds of each; the slowest first."""
    groups: dict[tuple[str, str], list[tuple[Collective, float]]] = {}
    for collective, seconds in collectives:
        groups.setdefault((collective.kind, collective.axes), []).append((collective, seconds))
    totals = [
        CollectiveTotal(
            kind,
            axes,
            sum(c.executions for c, _ in members),
            sum(c.bytes for c, _ in members),
            sum(c.bytes for c, _ in members if c.asynchronous),
            sum(c.bytes for c, _ in members if c.gathers),
            sum(seconds for _, seconds in members),
        )
        for (kind, axes), members in groups.items()
    ]
    return tuple(sorted(totals, key=lambda total: -total.seconds))


def _collectives_of(run: Execution, program: HloProgram) -> list[tuple[Instruction, bool]]:
    """Returns the collectives that an instruction starts, and whether others run beside them."""
    instruction = run.instruction
    if instruction.opcode.removesuffix("-start") in KINDS:
        return [(instruction, instruction.opcode.endswith("-start"))]
    if instruction.opcode != "fusion":
        return []
    [called] = instruction.called
    inner = list(program.computations[called].values())
    # A collective that runs beside other work is repeated in each fusion that it runs beside: its
    # start is where it counts.
    chained = [value for value in inner if "chain_id" in value.attributes]
    starts = any('"AsyncCollectiveStart"' in value.attributes for value in inner)
    return [
        (value, bool(chained))
        for value in inner
        if value.opcode in KINDS and (starts or value not in chained)
    ]


def _home(run: Execution, instruction: Instruction, program: HloProgram) -> str:
    return run.computation if instruction is run.instruction else run.instruction.called[0]


def _bytes(instruction: Instruction) -> int:
    """Returns the size of an instruction's results without the padding of their layout."""
    total = 0
    for shape in instruction.shape:
        if match := _BITS.match(shape):
            bits = 8 if match[1] == "pred" else int(match[2])
            total += math.prod(int(d) for d in match[3].split(",") if d) * bits // 8
    return total


def _received(kind: str, operands: list[int], devices: int) -> float:
    others = devices - 1
    match kind:
        case "all-gather":
            return float(sum(operands) * others)
        case "all-reduce":
            return 2.0 * sum(operands) * others / devices
        case "reduce-scatter" | "all-to-all":
            return sum(operands) * others / devices
        case "ragged-all-to-all":
            return min(operands[:2]) * others / devices
        case _:
            return float(sum(operands))


def _group(attributes: str, mesh: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the first group of devices, as places in the mesh."""
    count = math.prod(mesh.values())
    if match := _MESH.search(attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        named = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[2])
        return _along(sizes, named)
    if match := _IOTA.search(attributes):
        groups, size = int(match[1]), int(match[2])
        reshape = [int(d) for d in match[3].split(",")]
        places = np.arange(math.prod(reshape)).reshape(reshape)
        if match[4]:
            places = places.transpose([int(d) for d in match[4].split(",")])
        return tuple(int(place) for place in places.reshape(groups, size)[0])
    if match := _PAIRS.search(attributes):
        return tuple(int(place) for place in re.findall(r"\d+", match[1])[:2])
    if match := _LISTS.search(attributes):
        first = re.search(r"\{([\d,]+)\}", match[1])
        return tuple(int(place) for place in first[1].split(",")) if first else tuple(range(count))
    return tuple(range(count))


def _along(sizes: Mapping[str, int], named: list[tuple[str, str, str]]) -> tuple[int, ...]:
    """Returns the devices that share all coordinates but those of the named (parts of) axes.

    A part `'x':(p)s` is the middle one of three factors of an axis: p, s and the rest.
    """
    places = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    index: list[slice | int] = [0] * len(sizes)
    names = list(sizes)
    for name, before, size in named:
        axis = names.index(name)
        if not before:
            index[axis] = slice(None)
        else:
            step = sizes[name] // (int(before) * int(size))
            index[axis] = slice(0, step * int(size), step)
    return tuple(int(place) for place in places[tuple(index)].reshape(-1))


def _axes(group: tuple[int, ...], mesh: Mapping[str, int]) -> str:
    """Names the axes along which the members of a group differ."""
    coordinates = np.stack(np.unravel_index(np.array(group), tuple(mesh.values())))
    differ = (coordinates != coordinates[:, :1]).any(1)
    return "+".join(name for name, differs in zip(mesh, differ, strict=True) if differs)
