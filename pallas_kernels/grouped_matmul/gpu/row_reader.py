"""Rows read by index into swizzled shared memory, without a gathered copy in device memory.

Hopper's TMA copies boxes and has no indexed row gather, so rows are read with `cp.async`: each of
the 128 threads of a producer warpgroup copies 16 bytes an instruction, and eight neighbouring
threads copy the 128 bytes that a row has in one tile of the 128-byte swizzle. The index of a row is
loaded once and stays in registers. What a thread copies where is `source_row`, `source_byte` and
`target_byte`: plain arithmetic, so that it can be checked in numpy.

`cp.async` writes through the generic proxy and `wgmma` reads through the asynchronous one: after
the wait for the copies stands `fence.proxy.async`, and then the arrival at the barrier on which the
readers wait.

Pallas has no operation for this, so it is written in Mosaic GPU itself (`plgpu.inline_mgpu`), which
interpret mode cannot run: there the same rows are read by plain loads and stores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

# Whether kernels are interpreted is part of the key of every jit cache, and has no public getter.
from jax._src.config import pallas_tpu_interpret_mode_context_manager as _interpret_mode
from jax.experimental.mosaic.gpu import utils
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, memref, nvvm, vector

SWIZZLE = 128  # bytes; a row of a tile
TILE_ROWS = 8
WARPGROUP = 128  # threads
CHUNK = 16  # bytes that a thread copies an instruction
_CHUNKS = SWIZZLE // CHUNK
_WARPS = 4
ROWS_AT_ONCE = WARPGROUP // _CHUNKS

Ref = Any


def interpreted() -> bool:
    """Returns whether kernels traced now are interpreted (`plgpu.force_gpu_interpret_mode`)."""
    return _interpret_mode.value is not None


def tile_columns(dtype: jax.typing.DTypeLike) -> int:
    """Elements in the 128 bytes that a row has in a tile."""
    return SWIZZLE // jnp.dtype(dtype).itemsize


def tile_transforms(dtype: jax.typing.DTypeLike) -> tuple[Any, ...]:
    """The shared memory layout that `wgmma` reads: tiles of 8 rows by 128 bytes, swizzled."""
    # To the type checker they are abstract, for a method of their base class without a body.
    tiling: Any = plgpu.TilingTransform
    swizzle: Any = plgpu.SwizzleTransform
    return tiling((TILE_ROWS, tile_columns(dtype))), swizzle(SWIZZLE)


def source_row(thread: Any) -> Any:
    """The row that a thread copies first; in step i it is `ROWS_AT_ONCE * i` further."""
    return thread // _CHUNKS


def source_byte(thread: Any) -> Any:
    """The byte that a thread reads at, in a row's 128 bytes of a column tile."""
    return thread % _CHUNKS * CHUNK


def target_byte(thread: Any, step: int, column_tile: int, column_tiles: int) -> Any:
    """The byte that a thread writes at, from the start of the buffer in shared memory.

    Tiles follow one another, those of the same eight rows first. The 128-byte swizzle exchanges
    the 16-byte chunks of the row r of a tile by exclusive or with r.
    """
    row = thread // _CHUNKS
    in_tile = row % TILE_ROWS
    tile = row // TILE_ROWS * column_tiles
    first_tile = step * (ROWS_AT_ONCE // TILE_ROWS) * column_tiles + column_tile
    chunk = (thread % _CHUNKS) ^ in_tile
    return (tile + first_tile) * (TILE_ROWS * SWIZZLE) + in_tile * SWIZZLE + chunk * CHUNK


class _Int:
    """A 32-bit integer of the kernel, with Python's operators on non-negative numbers."""

    def __init__(self, value: ir.Value) -> None:
        self.value = value

    @staticmethod
    def _unwrap(other: _Int | int) -> ir.Value:
        if isinstance(other, _Int):
            return other.value
        return utils.c(other, ir.IntegerType.get_signless(32))

    def __add__(self, other: _Int | int) -> _Int:
        return _Int(arith.addi(self.value, self._unwrap(other)))

    def __mul__(self, other: _Int | int) -> _Int:
        return _Int(arith.muli(self.value, self._unwrap(other)))

    def __floordiv__(self, other: int) -> _Int:
        return _Int(arith.divui(self.value, self._unwrap(other)))

    def __mod__(self, other: int) -> _Int:
        return _Int(arith.remui(self.value, self._unwrap(other)))

    def __xor__(self, other: _Int) -> _Int:
        return _Int(arith.xori(self.value, other.value))


def _thread() -> _Int:
    threads = utils.c(WARPGROUP, ir.IndexType.get())
    thread = arith.remui(gpu.thread_id(gpu.Dimension.x), threads)
    return _Int(arith.index_castui(ir.IntegerType.get_signless(32), thread))


def _scalar(register: ir.Value) -> ir.Value:
    return vector.extract(register, [], [0])


@dataclasses.dataclass(frozen=True)
class RowReader:
    """Reads tiles of `rows` rows of a [N, width] array, `columns` wide, for `wgmma`.

    Attributes:
        rows: height of a tile, a multiple of 16.
        columns: its width, a multiple of what 128 bytes hold.
        width: of the array, a multiple of what 16 bytes hold. Columns beyond are read as zeros.
        dtype: of the array, two bytes wide.
        zero_rows: whether rows beyond the end are read as zeros; otherwise the last row is
            repeated.
    """

    rows: int
    columns: int
    width: int
    dtype: jax.typing.DTypeLike
    zero_rows: bool = False

    @property
    def _steps(self) -> int:
        return self.rows // ROWS_AT_ONCE

    @property
    def _layout(self) -> Any:
        return plgpu.Layout.WG_STRIDED((self._steps * WARPGROUP,), vec_size=1)

    def row_indices(self, index: Ref | None, start: Any, end: Any) -> jax.Array:
        """The rows of the array that a tile holds: those of the grouped rows from start to end.

        Args:
            index: int32 [R] in device memory; the array's row for each grouped row. None where they
                are the same.
            start: the first grouped row of the tile.
            end: the grouped row after the last one that may be read. May lie before `start` if
                rows beyond are zeros.

        Returns:
            What `read` wants. On the device, each thread's indices; -1 for a row of zeros.
        """
        if interpreted():
            position = start + jnp.arange(self.rows, dtype=jnp.int32)
        else:
            # Element `128 * i + t` of this array is the register i of the thread t.
            element = plgpu.layout_cast(
                jax.lax.broadcasted_iota(jnp.int32, (self._steps * WARPGROUP,), 0), self._layout
            )
            position = start + jax.lax.shift_right_logical(element, _CHUNKS.bit_length() - 1)
        # For an expert without rows before all others, the end is 0.
        clamped = jnp.maximum(jnp.minimum(position, end - 1), 0)
        row = clamped if index is None else self._look_up(index, clamped)
        return jnp.where(position < end, row, -1) if self.zero_rows else row

    def _look_up(self, index: Ref, position: jax.Array) -> jax.Array:
        if interpreted():
            return jnp.take(index[...], position, mode="clip")

        @plgpu.inline_mgpu(
            arg_types=(plgpu.RefType(), self._layout),
            return_type=plgpu.ShapeDtypeStruct(
                position.shape, jnp.dtype(jnp.int32), layout=self._layout
            ),
        )
        def look_up(_: Any, index: ir.Value, position: FragmentedArray) -> FragmentedArray:
            found = np.empty_like(position.registers)
            for i, register in np.ndenumerate(position.registers):
                at = arith.index_castui(ir.IndexType.get(), _scalar(register))
                found[i] = vector.broadcast(register.type, memref.load(index, [at]))
            return FragmentedArray(_registers=found, _layout=position.layout, _is_signed=True)

        return look_up(index, position)

    def read(self, source: Ref, target: Ref, row_indices: jax.Array, column: Any) -> None:
        """Starts the copies of one tile, as one group. In interpret mode it is there at once.

        Args:
            source: [N, width], in device memory.
            target: [rows, columns] in shared memory, laid out by `tile_transforms`.
            row_indices: from `row_indices`.
            column: the tile's first column.
        """
        if interpreted():
            tile = (
                source[...]
                .at[row_indices]
                .get(mode="fill", fill_value=0, wrap_negative_indices=False)
            )
            tile = jnp.pad(tile, ((0, 0), (0, self.columns)))
            target[...] = jax.lax.dynamic_slice_in_dim(tile, column, self.columns, 1)
            return

        @plgpu.inline_mgpu(
            arg_types=(
                plgpu.RefType(),
                plgpu.RefType(tile_transforms(self.dtype)),
                self._layout,
                plgpu.Layout.WG_SPLAT(()),
            )
        )
        def copy(
            _: Any,
            source: ir.Value,
            target: ir.Value,
            rows: FragmentedArray,
            column: FragmentedArray,
        ) -> None:
            self._copy(source, target, rows, _Int(column.registers.flat[0]))

        copy(source, target, row_indices, column)

    def _copy(
        self, source: ir.Value, target: ir.Value, rows: FragmentedArray, column: _Int
    ) -> None:
        i32, i64 = (ir.IntegerType.get_signless(bits) for bits in (32, 64))
        byte = ir.IntegerType.get_signless(8)
        itemsize = jnp.dtype(self.dtype).itemsize
        columns = tile_columns(self.dtype)
        thread = _thread()
        array = llvm.addrspacecast(llvm.PointerType.get(address_space=1), utils.memref_ptr(source))
        buffer = utils.memref_ptr(target)
        zero, whole = (utils.c(size, i32) for size in (0, CHUNK))
        row_bytes = utils.c(self.width * itemsize, i64)
        column_tiles = self.columns // columns
        for column_tile in range(column_tiles):
            in_row = (column + column_tile * columns) * itemsize + source_byte(thread)
            inside = None
            if self.width % self.columns:
                limit = utils.c(self.width * itemsize, i32)
                inside = arith.cmpi(arith.CmpIPredicate.slt, in_row.value, limit)
            for step, register in enumerate(rows.registers.flat):
                row, exists = _scalar(register), inside
                if self.zero_rows:
                    is_row = arith.cmpi(arith.CmpIPredicate.sge, row, zero)
                    exists = is_row if inside is None else arith.andi(is_row, inside)
                offset = arith.addi(
                    arith.muli(arith.extsi(i64, row), row_bytes), arith.extui(i64, in_row.value)
                )
                size = None
                if exists is not None:
                    # Nothing is read for a size of zero, but let the address be one of the array's.
                    offset = arith.select(exists, offset, utils.c(0, i64))
                    size = arith.select(exists, whole, zero)
                to = target_byte(thread, step, column_tile, column_tiles)
                nvvm.cp_async_shared_global(
                    utils.getelementptr(buffer, [to.value], byte),
                    utils.getelementptr(array, [offset], byte),
                    CHUNK,
                    nvvm.LoadCacheModifierKind.CG,
                    cp_size=size,
                )


def by_warps(function: Callable[[Any], None]) -> None:
    """Runs a function of the warp, 0 to 3, on each warp of the warpgroup.

    In interpret mode they take turns: four more threads a warpgroup triple its time.
    """
    if not interpreted():
        plgpu.warp_map(function)
        return
    for warp in range(_WARPS):
        function(jnp.int32(warp))


def commit_reads() -> None:
    """Closes the group of the copies started since the last call."""
    if interpreted():
        return

    @plgpu.inline_mgpu()
    def commit(_: Any) -> None:
        nvvm.cp_async_commit_group()

    commit()


def wait_for_reads(groups_in_flight: int) -> None:
    """Waits until at most so many of this thread's groups are under way.

    What has arrived may be read by `wgmma` after an arrival at a barrier.
    """
    if interpreted():
        plgpu.commit_smem()
        return

    @plgpu.inline_mgpu()
    def wait(_: Any) -> None:
        nvvm.cp_async_wait_group(groups_in_flight)
        nvvm.fence_proxy(nvvm.ProxyKind.async_shared, space=nvvm.SharedSpace.shared_cta)

    wait()
