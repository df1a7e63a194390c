"""Counts over a kernel's grid: copies that it starts itself, and how often each part runs.

The scalar part of the kernel is run for every grid step (`Interpreter`): grid indices, prefetched
tables and scalars in SMEM are known, arrays are not. Loops whose steps are all alike run once and
count for all.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from pallas_kernels.compile_report.traffic.interpreter import UNKNOWN, Interpreter, inner_jaxpr

_PRODUCTS = ("dot_general", "matmul_acc_lhs", "matmul_lhs_fifo")
_REF_READS = ("get", "masked_load")
_REF_WRITES = ("swap", "masked_swap", "addupdate")


@dataclasses.dataclass
class Memory:
    """A buffer that a kernel refers to.

    Attributes:
        space: "hbm", "smem" or "vmem".
        operand: its place among the operands and results of the kernel; None for scratch.
        data: its contents where they are known.
    """

    space: str
    operand: int | None
    data: Any


@dataclasses.dataclass(frozen=True)
class KernelSteps:
    """Counts over the whole grid of a kernel.

    Attributes:
        read: bytes that copies read from HBM, by operand (None for HBM scratch).
        written: bytes that copies write to HBM, by operand.
        copies: how many copies start.
        product_runs: of each part of the kernel that multiplies itself (the kernel, a loop's body,
            a branch), in program order, how often it runs.
        loop_runs: of each loop in the kernel that the compiler keeps, in program order, how often
            its body runs.
        store_runs: of each branch that stores arrays to VMEM and neither multiplies nor starts
            copies nor has a loop, in program order, how often it runs.
        flops: operations of the products, those on masked values included; a float32 product of
            three or six passes counts three- or sixfold.
        exact: False if a predicate or trip count could not be known: its body counted once.
    """

    read: dict[int | None, int]
    written: dict[int | None, int]
    copies: int
    product_runs: tuple[int, ...]
    loop_runs: tuple[int, ...]
    store_runs: tuple[int, ...]
    flops: int
    exact: bool


def _inner(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs inside an equation, conditions of loops left out."""
    if eqn.primitive.name == "cond":
        return [branch.jaxpr for branch in eqn.params["branches"]]
    if eqn.primitive.name == "while":
        return [eqn.params["body_jaxpr"].jaxpr]
    if eqn.primitive.name == "run_scoped":
        return [eqn.params["jaxpr"]]
    if eqn.primitive.name == "scan":
        return [eqn.params["jaxpr"].jaxpr]
    called = inner_jaxpr(eqn)
    return [] if called is None else [called.jaxpr]


def _unrolled(eqn: JaxprEqn) -> bool:
    params = eqn.params
    return eqn.primitive.name == "scan" and params["unroll"] >= params["length"]


def _is_loop(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "while" or (eqn.primitive.name == "scan" and not _unrolled(eqn))


def _is_region(eqn: JaxprEqn) -> bool:
    """Returns whether the compiler makes a part of its own of what is inside."""
    return eqn.primitive.name == "cond" or _is_loop(eqn)


@functools.cache
def _multiplies_itself(jaxpr: Jaxpr) -> bool:
    """Returns whether there is a product inside that no loop or branch inside has."""
    return any(
        eqn.primitive.name in _PRODUCTS
        or (not _is_region(eqn) and any(map(_multiplies_itself, _inner(eqn))))
        for eqn in jaxpr.eqns
    )


def product_parts(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """The kernel, loop bodies and branches that multiply themselves, in program order."""
    if _multiplies_itself(jaxpr):
        yield jaxpr
    yield from _parts_inside(jaxpr)


def _parts_inside(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    for eqn in jaxpr.eqns:
        for inner in _inner(eqn):
            yield from product_parts(inner) if _is_region(eqn) else _parts_inside(inner)


def loops(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """The loops that the compiler keeps, in program order, outer ones first."""
    for eqn in jaxpr.eqns:
        if _is_loop(eqn):
            yield eqn
        for inner in _inner(eqn):
            yield from loops(inner)


@functools.cache
def _stores(jaxpr: Jaxpr) -> bool:
    """Returns whether arrays are stored to VMEM inside, but not in a part of its own."""
    return any(
        (
            eqn.primitive.name in _REF_WRITES
            and _space(eqn.invars[0].aval) == "vmem"
            and not _is_scalar(eqn.invars[1].aval)
        )
        or (not _is_region(eqn) and any(map(_stores, _inner(eqn))))
        for eqn in jaxpr.eqns
    )


def _is_scalar(aval: Any) -> bool:
    return math.prod(getattr(aval, "shape", ())) <= 1


@functools.cache
def _only_stores(jaxpr: Jaxpr) -> bool:
    """Returns whether a branch stores arrays but has no product, copy or loop."""
    return _stores(jaxpr) and not _works(jaxpr)


@functools.cache
def _works(jaxpr: Jaxpr) -> bool:
    """Returns whether there are copies, products or loops inside."""
    return any(
        eqn.primitive.name in (*_PRODUCTS, "dma_start")
        or _is_loop(eqn)
        or any(map(_works, _inner(eqn)))
        for eqn in jaxpr.eqns
    )


def stores(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """The branches that only store, in program order, outer ones first."""
    for eqn in jaxpr.eqns:
        for inner in _inner(eqn):
            if eqn.primitive.name == "cond" and _only_stores(inner):
                yield inner
            yield from stores(inner)


def _is_counted(eqn: JaxprEqn) -> bool:
    """Returns whether an equation is, or has inside, a copy, a product, a loop or a store."""
    inner = _inner(eqn)
    return (
        eqn.primitive.name in (*_PRODUCTS, "dma_start")
        or _is_loop(eqn)
        or (eqn.primitive.name == "cond" and any(map(_only_stores, inner)))
        or any(map(_counted, inner))
    )


def _counted_effects(jaxpr: Jaxpr) -> bool:
    return any(map(_is_counted, jaxpr.eqns))


_counted = functools.cache(_counted_effects)


@functools.cache
def _steps_differ(jaxpr: Jaxpr) -> bool:
    """Returns whether steps of a loop with this body can count differently."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "cond" and _is_counted(eqn):
            return True
        inner = _inner(eqn)
        if eqn.primitive.name == "while" and any(map(_counted, inner)):
            return True
        if any(map(_steps_differ, inner)):
            return True
    return False


@functools.cache
def _needed(jaxpr: Jaxpr) -> tuple[JaxprEqn, ...]:
    """The equations that control depends on: scalars, tables in SMEM, and what is counted."""
    kept: list[JaxprEqn] = []
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, _inner(eqn)
        small = all(math.prod(getattr(v.aval, "shape", ())) <= 1 for v in eqn.outvars)
        if name in _REF_WRITES:
            keep = _space(eqn.invars[0].aval) == "smem"
        elif inner:
            keep = _is_counted(eqn) or (
                any(e.primitive.name in _REF_WRITES for body in inner for e in _needed(body))
            )
            keep = keep or (small and name != "run_scoped")
        else:
            keep = name in (*_PRODUCTS, "dma_start") or small
        if keep:
            kept.append(eqn)
    return tuple(kept)


def _space(aval: Any) -> str:
    name = str(getattr(aval, "memory_space", None)).lower()
    for space in ("smem", "hbm", "any"):
        if space in name:
            return "hbm" if space == "any" else space
    return "vmem"


class _KernelInterpreter(Interpreter):
    def __init__(self, jaxpr: Jaxpr, grid: Sequence[int]):
        super().__init__()
        self.grid = tuple(grid)
        self.step: tuple[int, ...] = (0,) * len(self.grid)
        self.weight = 1
        self.read: collections.Counter[int | None] = collections.Counter()
        self.written: collections.Counter[int | None] = collections.Counter()
        self.copies = 0
        self.flops = 0
        self.runs = {id(part): 0 for part in product_parts(jaxpr)}
        self.loop_runs = {id(eqn): 0 for eqn in loops(jaxpr)}
        self.store_runs = {id(branch): 0 for branch in stores(jaxpr)}

    def equations(self, jaxpr: Jaxpr) -> Sequence[JaxprEqn]:
        return _needed(jaxpr)

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        if id(jaxpr) in self.runs:
            self.runs[id(jaxpr)] += self.weight
        if id(jaxpr) in self.store_runs:
            self.store_runs[id(jaxpr)] += self.weight
        # Only needed equations are run; values of the others are unknown.
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values.get(atom, UNKNOWN)

        for eqn in _needed(jaxpr):
            results = self.equation(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if name == "program_id":
            return [np.int32(self.step[eqn.params["axis"]])]
        if name == "num_programs":
            return [np.int32(self.grid[eqn.params["axis"]])]
        if name in _PRODUCTS:
            self.flops += _flops(eqn) * self.weight
            return [UNKNOWN] * len(eqn.outvars)
        if name == "dma_start":
            self._copy(eqn, inputs)
            return []
        if name == "run_scoped":
            scratch = [
                Memory(_space(v.aval), None, _blank(v.aval)) for v in eqn.params["jaxpr"].invars
            ]
            return self.run(eqn.params["jaxpr"], inputs, scratch)
        if name in _REF_READS:
            return [_read(inputs[0], eqn, inputs[1:])]
        if name in _REF_WRITES:
            return [self._write(eqn, inputs)] if eqn.outvars else self._write(eqn, inputs) and []
        return super().equation(eqn, inputs)

    def other(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        # Other scalars of a kernel (semaphores, random bits) steer nothing that is counted.
        del inputs
        return [UNKNOWN] * len(eqn.outvars)

    def body(self, eqn: JaxprEqn, inner: ClosedJaxpr, inputs: list[Any]) -> list[Any]:
        if eqn.primitive.name == "while":
            self.loop_runs[id(eqn)] += self.weight
        return super().body(eqn, inner, inputs)

    def branch_unknown(self, eqn: JaxprEqn) -> None:
        if _is_counted(eqn):
            self.exact = False

    def scan(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        inner: ClosedJaxpr = eqn.params["jaxpr"]
        if _is_loop(eqn):
            trips = -(-eqn.params["length"] // max(eqn.params["unroll"], 1))
            self.loop_runs[id(eqn)] += trips * self.weight
        if _steps_differ(inner.jaxpr) or _writes_smem(inner.jaxpr):
            return super().scan(eqn, inputs)
        consts = list(eqn.params["ft_in"].update(inputs).unpack()[0])
        return self._alike(eqn, inner, inputs, len(consts), eqn.params["length"])

    def while_loop(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        inner: ClosedJaxpr = eqn.params["body_jaxpr"]
        trips = _trips(eqn, inputs)
        if trips is None or _steps_differ(inner.jaxpr) or _writes_smem(inner.jaxpr):
            return super().while_loop(eqn, inputs)
        self.loop_runs[id(eqn)] += trips * self.weight
        skip = eqn.params["cond_nconsts"]
        return self._alike(eqn, inner, inputs[skip:], eqn.params["body_nconsts"], trips)

    def _alike(
        self, eqn: JaxprEqn, inner: ClosedJaxpr, inputs: list[Any], consts: int, times: int
    ) -> Sequence[Any]:
        """Runs a body once and counts it `times` times."""
        if times and _counted(inner.jaxpr):
            before, self.weight = self.weight, self.weight * times
            unknown = [UNKNOWN] * (len(inputs) - consts)
            super().body(eqn, inner, [*inputs[:consts], *unknown])
            self.weight = before
        return [UNKNOWN] * len(eqn.outvars)

    def _copy(self, eqn: JaxprEqn, inputs: list[Any]) -> None:
        tree = eqn.params["tree"]
        source, _ = tree.unflatten([v.aval for v in eqn.invars])[:2]
        [from_, to] = (_memory(part) for part in tree.unflatten(inputs)[:2])
        size = math.prod(_static(source.shape)) * np.dtype(source.dtype).itemsize * self.weight
        if from_.space == "hbm":
            self.read[from_.operand] += size
        if to.space == "hbm":
            self.written[to.operand] += size
        self.copies += self.weight
        if to.space == "smem":
            to.data = UNKNOWN
            if from_.data is not UNKNOWN and source is not None and not hasattr(source, "ref"):
                to.data = np.array(from_.data)

    def _write(self, eqn: JaxprEqn, inputs: list[Any]) -> Any:
        memory, value, *indices = inputs
        if memory.data is UNKNOWN or eqn.primitive.name != "swap":
            return UNKNOWN
        place = _place(eqn, indices)
        if place is None:
            memory.data = UNKNOWN
            return UNKNOWN
        before = memory.data[place]
        if value is UNKNOWN:
            # One unknown scalar makes the table unknown: tables are small and written whole.
            memory.data = UNKNOWN
        else:
            memory.data[place] = value
        return before


def _flops(eqn: JaxprEqn) -> int:
    """Operations of a product, each pass over a float32 operand counted."""
    if eqn.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left: Any = eqn.invars[0].aval
    out: Any = eqn.outvars[0].aval
    depth = math.prod(left.shape[axis] for axis in contracted)
    precision = str(eqn.params["precision"])
    wide = np.dtype(left.dtype).itemsize >= 4
    passes = 6 if wide and "HIGHEST" in precision else 3 if wide and "HIGH" in precision else 1
    return 2 * math.prod(out.shape) * depth * passes


def _static(shape: Sequence[Any]) -> list[int]:
    # A dimension of dynamic size counts in full where its bound is known, else once.
    return [d if isinstance(d, int) else 1 for d in shape]


def _writes_smem(jaxpr: Jaxpr) -> bool:
    return any(
        (e.primitive.name in _REF_WRITES and _space(e.invars[0].aval) == "smem")
        or any(map(_writes_smem, _inner(e)))
        for e in jaxpr.eqns
    )


def _memory(part: Any) -> Memory:
    while not isinstance(part, Memory):
        part = part.ref
    return part


def _blank(aval: Any) -> Any:
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    if _space(aval) != "smem" or shape is None or not np.issubdtype(dtype, np.integer):
        return UNKNOWN
    return np.zeros(shape, dtype)


def _place(eqn: JaxprEqn, indices: list[Any]) -> Any:
    """The index of a read or write as numpy takes it; None if it is unknown."""
    transforms = eqn.params["tree"].unflatten(indices) if "tree" in eqn.params else ()
    if not transforms:
        return ...
    [indexer] = transforms if len(transforms) == 1 else [None]
    if indexer is None or not hasattr(indexer, "indices"):
        return None
    place: list[Any] = []
    for index in indexer.indices:
        if hasattr(index, "size") and hasattr(index, "start"):
            if index.start is UNKNOWN or not isinstance(index.size, int):
                return None
            start = int(index.start)
            place.append(slice(start, start + index.size * (index.stride or 1), index.stride or 1))
        elif index is UNKNOWN:
            return None
        else:
            place.append(np.asarray(index))
    return tuple(place)


def _read(memory: Any, eqn: JaxprEqn, indices: list[Any]) -> Any:
    if not isinstance(memory, Memory) or memory.data is UNKNOWN or eqn.primitive.name != "get":
        return UNKNOWN
    place = _place(eqn, indices)
    return UNKNOWN if place is None else memory.data[place]


def _trips(eqn: JaxprEqn, inputs: list[Any]) -> int | None:
    """Trips of a loop that counts up to a bound by one, as `fori_loop` makes them."""
    cond, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
    if len(cond.eqns) != 1 or cond.eqns[0].primitive.name != "lt":
        return None
    skip, first = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    known = dict(zip(cond.invars, [*inputs[:skip], *inputs[skip + first :]], strict=True))
    low, high = (
        atom.val if isinstance(atom, Literal) else known[atom] for atom in cond.eqns[0].invars
    )
    counter = cond.eqns[0].invars[0]
    if low is UNKNOWN or high is UNKNOWN or isinstance(counter, Literal):
        return None
    place = list(cond.invars).index(counter) - skip
    result = body.outvars[place]
    for step in body.eqns:
        if step.primitive.name == "add" and step.outvars[0] is result:
            one = step.invars[1]
            if isinstance(one, Literal) and one.val == 1:
                return max(int(high) - int(low), 0)
    return None


def count_steps(jaxpr: Jaxpr, grid: Sequence[int], operands: Sequence[Memory]) -> KernelSteps:
    """Runs the scalar part of a kernel over its grid.

    Args:
        jaxpr: of the kernel; takes the operands, then scratch.
        grid: steps along each axis.
        operands: what is known of the operands and results.
    """
    interpreter = _KernelInterpreter(jaxpr, grid)
    scratch = [Memory(_space(v.aval), None, _blank(v.aval)) for v in jaxpr.invars[len(operands) :]]
    arguments = [*operands, *scratch]
    if not _steps_differ(jaxpr) and not _writes_smem(jaxpr):
        interpreter.weight = math.prod(grid)
        interpreter.run(jaxpr, (), arguments)
    else:
        for step in itertools.product(*map(range, grid)):
            interpreter.step = step
            interpreter.run(jaxpr, (), arguments)
    return KernelSteps(
        dict(interpreter.read),
        dict(interpreter.written),
        interpreter.copies,
        tuple(interpreter.runs.values()),
        tuple(interpreter.loop_runs.values()),
        tuple(interpreter.store_runs.values()),
        interpreter.flops,
        interpreter.exact,
    )
