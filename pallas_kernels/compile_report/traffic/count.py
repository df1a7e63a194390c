"""The bytes that a program moves from and to HBM, counted rather than declared.

One counter for everybody's kernels. A blocked operand is fetched, and a blocked result flushed,
whenever its block changes from one grid step to the next, as the pipeline does: the block map is
evaluated over the whole grid, with the prefetched tables that the program itself computes from the
given integers. Copies that the kernel starts are added (`kernel_steps`), and so is what XLA's own
operations around the kernels move (`hlo`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from pallas_kernels.compile_report.compilation import abstract_device, trace_for
from pallas_kernels.compile_report.hlo import HloProgram, Instruction
from pallas_kernels.compile_report.traffic.interpreter import UNKNOWN, Interpreter
from pallas_kernels.compile_report.traffic.kernel_steps import KernelSteps, Memory, count_steps


@dataclasses.dataclass(frozen=True)
class KernelTraffic:
    """Bytes that one kernel moves in one call, and the runs of its parts.

    Attributes:
        name: given to the kernel, or "".
        signature: element types and dimensions of its results, as in the optimised program.
        grid: steps along each axis.
        parallel_steps: steps along the first grid axis that the kernel declares parallel and that
            has several, which the cores of a chip share; 1 if there is none.
        read: bytes read from HBM, by operand.
        written: bytes written to HBM, by result.
        copies: copies started, those of the pipeline included.
        product_runs: see `KernelSteps`.
        loop_runs: see `KernelSteps`.
        store_runs: see `KernelSteps`.
        flops: see `KernelSteps`.
        exact: see `KernelSteps`.
    """

    name: str
    signature: tuple[str, ...]
    grid: tuple[int, ...]
    parallel_steps: int
    read: tuple[int, ...]
    written: tuple[int, ...]
    copies: int
    product_runs: tuple[int, ...]
    loop_runs: tuple[int, ...]
    store_runs: tuple[int, ...]
    flops: int
    exact: bool

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(self.read) + sum(self.written)

    def share(self, cores: int) -> float:
        """The part of the grid that the busiest of a chip's cores runs."""
        return -(-self.parallel_steps // cores) / self.parallel_steps


class _Finder(Interpreter):
    """Collects the kernels of a program with the values of their integer operands."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[KernelTraffic] = []

    def equation(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        if eqn.primitive.name == "pallas_call":
            self.found.append(_kernel(eqn, inputs))
            return [UNKNOWN] * len(eqn.outvars)
        return super().equation(eqn, inputs)


def kernel_traffic(
    function: Callable[..., Any], *arguments: Any, device: jax.Device | None = None
) -> list[KernelTraffic]:
    """Counts what each kernel of `function` moves, in the order in which they run.

    Args:
        function: takes `arguments`.
        arguments: pytrees; see `Program`.
        device: what `function` finds as its device while it is traced, as in `compile_for`.

    Raises:
        ValueError: a block map or a grid depends on values that are not known.
    """
    leaves = jax.tree.leaves(arguments)
    with contextlib.ExitStack() as contexts:
        if device is not None:
            contexts.enter_context(jax.default_device(device))
            contexts.enter_context(trace_for(abstract_device(device)))
        # Shapes only: concrete arguments would be put on the device.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        closed = jax.make_jaxpr(function)(*shapes)
    values = [
        UNKNOWN if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf) for leaf in leaves
    ]
    finder = _Finder()
    finder.run(closed.jaxpr, closed.consts, values)
    return finder.found


def _kernel(eqn: JaxprEqn, inputs: list[Any]) -> KernelTraffic:
    mapping, jaxpr = eqn.params["grid_mapping"], eqn.params["jaxpr"]
    name = eqn.params.get("name") or getattr(eqn.params.get("name_and_src_info"), "name", "") or ""
    dynamic = mapping.num_dynamic_grid_bounds
    bounds = iter(inputs[:dynamic])
    grid = tuple(
        bound if isinstance(bound, int) else _known(next(bounds), f"the grid of kernel {name!r}")
        for bound in mapping.grid
    )
    tables = inputs[dynamic : dynamic + mapping.num_index_operands]
    operands = [
        Memory("smem", i, UNKNOWN if table is UNKNOWN else np.array(table))
        for i, table in enumerate(tables)
    ]
    moved, fetches = [_bytes(v.aval) for v in eqn.invars[dynamic : dynamic + len(tables)]], 0
    for i, block in enumerate(mapping.block_mappings):
        place = len(tables) + i
        space = str(block.transformed_block_aval.memory_space).lower()
        if "any" in space or "hbm" in space:
            size, changes = 0, 0
            operands.append(Memory("hbm", place, UNKNOWN))
        else:
            scalars = "smem" in space or "semaphore" in space
            value = inputs[dynamic + place] if scalars and i < mapping.num_inputs else UNKNOWN
            size, changes = _block_bytes(block, grid, tables, name)
            operands.append(Memory("smem" if scalars else "vmem", place, value))
        moved.append(size)
        fetches += changes
    steps = count_steps(jaxpr, grid, operands)
    return _total(eqn, mapping, name, grid, moved, fetches, steps)


def _total(
    eqn: JaxprEqn,
    mapping: Any,
    name: str,
    grid: tuple[int, ...],
    moved: list[int],
    fetches: int,
    steps: KernelSteps,
) -> KernelTraffic:
    inputs = mapping.num_index_operands + mapping.num_inputs
    read = [size if i < inputs else 0 for i, size in enumerate(moved)]
    written = [size if i >= inputs else 0 for i, size in enumerate(moved)]
    # Scratch in HBM is nobody's operand; its bytes go to the last result.
    for counted, total in ((steps.read, read), (steps.written, written)):
        for place, size in counted.items():
            total[len(moved) - 1 if place is None else place] += size
    semantics = getattr(eqn.params["compiler_params"], "dimension_semantics", None) or ()
    parallel = [i for i, axis in enumerate(semantics) if str(axis).lower().endswith("parallel")]
    return KernelTraffic(
        name=name,
        signature=tuple(_signature(v.aval) for v in eqn.outvars),
        grid=grid,
        parallel_steps=next((grid[i] for i in parallel if grid[i] > 1), 1),
        read=tuple(read),
        written=tuple(written),
        copies=steps.copies + fetches,
        product_runs=steps.product_runs,
        loop_runs=steps.loop_runs,
        store_runs=steps.store_runs,
        flops=steps.flops,
        exact=steps.exact,
    )


def _known(value: Any, what: str) -> int:
    if value is UNKNOWN:
        raise ValueError(f"{what} depends on values that are not known: give them as arrays")
    return int(value)


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


def _signature(aval: Any) -> str:
    names = {"bfloat16": "bf16", "float": "f", "uint": "u", "int": "s", "bool": "pred"}
    text = str(np.dtype(aval.dtype))
    for long, short in names.items():
        if text.startswith(long):
            text = short + text[len(long) :]
            break
    return f"{text}[{','.join(map(str, aval.shape))}]"


def _block_bytes(
    block: Any, grid: tuple[int, ...], tables: list[Any], name: str
) -> tuple[int, int]:
    """Bytes of all blocks that one operand moves, and how many blocks those are."""
    jaxpr: Jaxpr = block.index_map_jaxpr.jaxpr
    axes = np.meshgrid(*(np.arange(n, dtype=np.int32) for n in grid), indexing="ij")
    steps = [axis.ravel() for axis in axes]
    count = math.prod(grid)
    refs = [Memory("smem", None, table) for table in tables]
    interpreter = _IndexMap()
    results = interpreter.run(jaxpr, block.index_map_jaxpr.consts, [*steps, *refs])
    itemsize = np.dtype(block.array_aval.dtype).itemsize
    indices, sizes = [], []
    for index, dim, length in zip(results, block.block_shape, block.array_aval.shape, strict=True):
        if index is UNKNOWN:
            raise ValueError(
                f"a block map of kernel {name!r} depends on values that are not known: give them "
                "as arrays"
            )
        index = np.broadcast_to(np.asarray(index), (count,)).astype(np.int64)
        kind = type(dim).__name__
        size = 1 if kind == "Squeezed" or dim is None else int(getattr(dim, "block_size", dim))
        start = index if kind == "Element" else index * size
        indices.append(index)
        # A block that reaches over the edge moves what is inside.
        sizes.append(np.clip(np.minimum(size, length - start), 0, None))
    if not indices:
        return itemsize, 1
    if not count:
        return 0, 0
    moved = np.ones(count, bool)
    stacked = np.stack(indices)
    moved[1:] = np.any(stacked[:, 1:] != stacked[:, :-1], axis=0)
    volume = np.prod(np.stack(sizes), axis=0)
    return int(volume[moved].sum()) * itemsize, int(moved.sum())


class _IndexMap(Interpreter):
    """Evaluates a block map at all grid steps at once."""

    def equation(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        if eqn.primitive.name == "get":
            memory, *indices = inputs
            [indexer] = eqn.params["tree"].unflatten(indices)
            if memory.data is UNKNOWN or any(index is UNKNOWN for index in indexer.indices):
                return [UNKNOWN]
            return [np.asarray(memory.data)[tuple(np.asarray(i) for i in indexer.indices)]]
        return super().equation(eqn, inputs)

    def cond(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        which, *rest = inputs
        if which is UNKNOWN or np.ndim(which) == 0:
            return super().cond(eqn, inputs)
        cases = [self.branch(eqn, i, rest) for i in range(len(eqn.params["branches"]))]
        if any(value is UNKNOWN for case in cases for value in case):
            return [UNKNOWN] * len(eqn.outvars)
        clipped = np.clip(which, 0, len(cases) - 1)
        return [np.choose(clipped, values) for values in zip(*cases, strict=True)]


@dataclasses.dataclass(frozen=True)
class ProgramTraffic:
    """Bytes that a whole program moves.

    Attributes:
        total: bytes from and to HBM.
        by_category: the same, by category of `hlo.Movement`.
        kernels: of each kernel of the optimised program, its instruction's name, what it would
            move from and to HBM, what it moves as the compiler placed its operands, and how often
            it runs.
        exact: False if a kernel's count is not exact.
    """

    total: int
    by_category: dict[str, int]
    kernels: tuple[tuple[str, KernelTraffic, int, int], ...]
    exact: bool


def program_traffic(program: HloProgram, kernels: Sequence[KernelTraffic]) -> ProgramTraffic:
    """Adds up kernels and XLA's own operations.

    Args:
        program: the optimised program.
        kernels: of the same function, from `kernel_traffic`.

    Raises:
        ValueError: a kernel of the program is none of `kernels`.
    """
    by_category: dict[str, int] = {}
    matched = []
    instructions = {instruction.name: instruction for instruction in program.kernels()}
    unused = list(kernels)
    named = [k for k in kernels if k.name and any(k.name in name for name in instructions)]
    for movement in program.movements():
        size = movement.bytes
        if movement.category == "kernel":
            instruction = instructions[movement.name]
            kernel = _match(instruction, kernels, named, unused)
            if kernel in unused:
                unused.remove(kernel)
            size = _placed_bytes(program, instruction, kernel) * movement.executions
            matched.append((movement.name, kernel, size, movement.executions))
        by_category[movement.category] = by_category.get(movement.category, 0) + size
    return ProgramTraffic(
        total=sum(by_category.values()),
        by_category=by_category,
        kernels=tuple(matched),
        exact=all(kernel.exact for _, kernel, _, _ in matched),
    )


def _match(
    instruction: Instruction,
    kernels: Sequence[KernelTraffic],
    named: Sequence[KernelTraffic],
    unused: Sequence[KernelTraffic],
) -> KernelTraffic:
    """The kernel with an instruction's results and name; of several, one that is not taken yet.

    Names grow before and behind, in gradients and in the compiler, and one kernel's may hold
    another's: the longest counts. An instruction that bears no kernel's name is one of those whose
    names no instruction bears (`named` are the others), if there is any.
    """
    fitting = [kernel for kernel in kernels if kernel.signature == instruction.shape]
    if not fitting:
        raise ValueError(f"kernel {instruction.name} {instruction.shape} of the program is unknown")

    def preference(kernel: KernelTraffic) -> tuple[int, bool, bool]:
        name = len(kernel.name) if kernel.name in instruction.name else 0
        return name, kernel not in named, kernel in unused

    return max(fitting, key=preference)


def _placed_bytes(program: HloProgram, instruction: Instruction, kernel: KernelTraffic) -> int:
    """Bytes to and from HBM, without operands and results that the compiler placed in VMEM."""
    operands = program.operand_buffers(instruction)
    results = instruction.buffers
    inputs = len(kernel.read) - len(results)
    # Bounds of dynamic grids come before the operands that are counted.
    operands = operands[len(operands) - inputs :]
    placed = [*operands, *results]
    return sum(
        read + written
        for read, written, buffer in zip(kernel.read, kernel.written, placed, strict=True)
        if buffer.in_hbm
    )
