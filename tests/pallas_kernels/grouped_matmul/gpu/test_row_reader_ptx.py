"""The compiled row reader, executed thread by thread.

Interpret mode cannot run `cp.async`, so the assembly of a kernel that reads one tile is executed
here: it is straight-line integer arithmetic. What it copies must be the tile, and all that it reads
must lie within its arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.compile_report import compile_for, h100_device
from pallas_kernels.grouped_matmul.gpu.row_reader import (
    WARPGROUP,
    RowReader,
    commit_reads,
    tile_transforms,
    wait_for_reads,
)

ROWS, COLUMNS, WIDTH, HEIGHT, GROUPED = 64, 128, 192, 50, 100
MASK = 2**32 - 1
# Where the arguments are: the tile's range and column, the index, the output, the rows.
PLACES = (0x1000, 0x100000, 0x500000, 0x700000000000)
SHARED = 0x2000000


def _read_one_tile(place, index, source, output, tile) -> None:
    reader = RowReader(ROWS, COLUMNS, WIDTH, jnp.bfloat16, zero_rows=True)
    reader.read(source, tile, reader.row_indices(index, place[0], place[1]), place[2])
    commit_reads()
    wait_for_reads(0)
    plgpu.copy_smem_to_gmem(tile, output)
    plgpu.wait_smem_to_gmem(0)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory) -> str:
    folder: Path = tmp_path_factory.mktemp("assembly")
    kernel = plgpu.kernel(
        _read_one_tile,
        out_type=jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.bfloat16),
        scratch_types=[
            plgpu.SMEM((ROWS, COLUMNS), jnp.bfloat16, transforms=tile_transforms(jnp.bfloat16))
        ],
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSAIC_GPU_DUMP_TO", str(folder))
        compile_for(
            h100_device(),
            kernel,
            jax.ShapeDtypeStruct((3,), jnp.int32),
            jax.ShapeDtypeStruct((GROUPED,), jnp.int32),
            jax.ShapeDtypeStruct((HEIGHT, WIDTH), jnp.bfloat16),
        )
    [path] = folder.glob("*.ptx")
    return path.read_text()


def _signed(x: int) -> int:
    x &= MASK
    return x - 2**32 if x >> 31 else x


# By the start of the operation; the first that fits.
_OPERATIONS: dict[str, Callable[..., int]] = {
    "shr.u32": lambda a, b: a >> b,
    "shl.b32": lambda a, b: a << b & MASK,
    "add.s32": lambda a, b: a + b & MASK,
    "add.s64": lambda a, b: a + b,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "min.relu.s32": lambda a, b: max(0, min(_signed(a), _signed(b))),
    "min.s32": lambda a, b: min(_signed(a), _signed(b)) & MASK,
    "max.s32": lambda a, b: max(_signed(a), _signed(b)) & MASK,
    "mul.wide.u32": lambda a, b: a * b,
    "mul.wide.s32": lambda a, b: _signed(a) * b,
    "setp.lt.s32": lambda a, b: _signed(a) < _signed(b),
    "setp.gt.s32": lambda a, b: _signed(a) > _signed(b),
    "setp.lt.and.s32": lambda a, b, c: _signed(a) < _signed(b) and c,
    "setp.gt.and.s32": lambda a, b, c: _signed(a) > _signed(b) and c,
    "selp.b32": lambda a, b, c: a if c else b,
    "selp.b64": lambda a, b, c: a if c else b,
    "shfl.sync.idx": lambda a, *_: a,  # of the number of the warp, the same in all its lanes
    "cvt": lambda a: a,
    "cvta": lambda a: a,
    "mov": lambda a: a,
}
# Synchronisation, and who issues the copy to the output.
_IGNORED = (
    *("//", ".", "$", "@", "{", "}"),
    *("fence", "bar", "ret", "elect", "setp.eq.and"),
    *("cp.async.bulk", "cp.async.commit_group", "cp.async.wait_group"),
)


def _execute(text: str, thread: int, memory: dict[int, int]) -> list[tuple[int, int, int]]:
    """The copies of a thread: offset in shared memory, address, and bytes that are not zeros."""
    registers: dict[str, int] = {}
    copies = []

    def value(operand: str) -> int:
        if operand.startswith("%tid"):
            return thread
        if operand.startswith("%"):
            return registers[operand]
        if operand.startswith("__dynamic_shmem"):
            return SHARED
        if parameter := re.search(r"_param_(\d)", operand):
            return PLACES[int(parameter[1])]
        return int(operand, 0)

    def address(operand: str) -> int:
        base, _, offset = operand.strip("[]").partition("+")
        return value(base) + int(offset or 0)

    for line in text[text.index("{\n\t.reg") :].splitlines():
        operation, _, rest = line.strip().rstrip(";").replace("\t", " ").partition(" ")
        if not operation or operation.startswith(_IGNORED):
            continue
        operands = [operand.strip() for operand in rest.split(",")]
        if operation.startswith("cp.async.cg.shared.global"):
            target, source, _, size = operands
            copies.append((address(target) - SHARED, address(source), value(size)))
        elif operation.startswith("ld.param"):
            registers[operands[0]] = address(operands[1])
        elif operation.startswith("ld.global"):
            registers[operands[0]] = memory[address(operands[1])]  # KeyError: out of bounds
        else:
            rule = next(r for name, r in _OPERATIONS.items() if operation.startswith(name))
            registers[operands[0]] = rule(*map(value, operands[1:]))
    return copies


@pytest.mark.parametrize(
    "place",
    [(7, 60, 0), (7, 60, 64), (7, 100, 128), (90, 95, 0), (0, 0, 0), (10, 5, 128)],
    ids=["short", "shifted", "past the width", "few rows", "empty first expert", "past the end"],
)
def test_the_tile_and_nothing_else_is_copied(assembly: str, place: tuple[int, int, int]) -> None:
    start, end, column = place
    rng = np.random.default_rng(0)
    source = rng.integers(1, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    index = rng.integers(0, HEIGHT, GROUPED)
    memory = {PLACES[0] + 4 * i: x for i, x in enumerate(place)}
    memory |= {PLACES[1] + 4 * i: int(x) for i, x in enumerate(index)}
    flat = source.view(np.uint8).reshape(-1)
    shared = np.full(ROWS * COLUMNS * 2, 0xEE, np.uint8)
    for thread in range(WARPGROUP):
        for target, address, size in _execute(assembly, thread, memory):
            first = address - PLACES[3]
            assert 0 <= first <= flat.size - 16
            shared[target : target + 16] = 0
            shared[target : target + size] = flat[first : first + size]
    expected = np.zeros((ROWS, COLUMNS), np.uint16)
    for i in range(start, min(start + ROWS, end)):
        columns = source[index[i], column : column + COLUMNS]
        expected[i - start, : columns.size] = columns
    # Tiles of 8 rows by 128 bytes, whose addresses are swizzled by the hardware's rule.
    row, byte = np.divmod(np.arange(shared.size), COLUMNS * 2)
    place_of = (row // 8 * (COLUMNS // 64) + byte // 128) * 1024 + row % 8 * 128 + byte % 128
    place_of ^= (place_of >> 7 & 7) << 4
    got = shared[place_of].reshape(ROWS, COLUMNS * 2).view(np.uint16)
    np.testing.assert_array_equal(got, expected)
