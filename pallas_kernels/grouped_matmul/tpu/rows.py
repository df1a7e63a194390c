"""Packed rows: the form in which a DMA can fetch any one of them, and the fetching.

Two rows narrower than 32 bits share a register's lanes in a 2-D array, and cannot be copied one by
one. So two columns of rows of bfloat16 are packed into one of uint32: of every 1024 columns (or of
all, where there are no more) those of the first half lie in the low 16 bits, those of the second
half in the high ones. Each half is a float32 but for a shift or a mask, so that unpacking gives
products what they want, in order. Rows of float32 are as they are.

Packed columns come in planes of 128, [P, R, 128]: one shift gives where a row begins. A
copy brings a row from all planes of an array to all planes of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

LANES, SUBLANES = 128, 8
# Blocks of columns are multiples, in any dtype.
ROW_MULTIPLE = LANES * SUBLANES
_HALF_BITS, _HIGH = 16, 0xFFFF0000
# Rows of the narrowest dtype that fill registers.
_PACKED_ROWS = 16
# Of a block of rows that is packed.
_BLOCK_BYTES = 2**20


def round_up(x: int, multiple: int) -> int:
    """The smallest multiple that is at least x."""
    return -(-x // multiple) * multiple


def padded_width(width: int) -> int:
    """Columns of rows of `width` columns, padded to be packed."""
    return round_up(width, 2 * LANES if width <= ROW_MULTIPLE else ROW_MULTIPLE)


def _fills_lanes(dtype: DTypeLike) -> bool:
    return jnp.dtype(dtype).itemsize == 4


def packed_dtype(dtype: DTypeLike) -> Any:
    """The dtype of packed rows of a dtype."""
    return jnp.dtype(dtype) if _fills_lanes(dtype) else jnp.dtype(jnp.uint32)


def unpacked_dtype(packed: Array) -> Any:
    """The dtype of the rows that are packed there."""
    return jnp.dtype(jnp.bfloat16) if packed.dtype == jnp.uint32 else packed.dtype


def packed_shape(rows: int, width: int, dtype: DTypeLike) -> tuple[int, int, int]:
    """[P, R, 128]."""
    return padded_width(width) * jnp.dtype(dtype).itemsize // 4 // LANES, rows, LANES


def _columns(planes: int, dtype: DTypeLike) -> Iterator[tuple[int, ...]]:
    """For each plane the first columns of what it holds: one, or the low and high halves'."""
    for plane in range(planes):
        if _fills_lanes(dtype):
            yield (plane * LANES,)
        else:
            part = min(planes, SUBLANES // 2)
            low = (plane + plane // part * part) * LANES
            yield low, low + part * LANES


def _pack_pair(low: Array, high: Array) -> Array:
    """Rounds two of the same shape to bfloat16 and packs them into uint32."""
    low, high = (
        lax.bitcast_convert_type(x.astype(jnp.bfloat16).astype(jnp.float32), jnp.uint32)
        for x in (low, high)
    )
    return (low >> _HALF_BITS) | high


def _pack(parts: list[Array], dtype: DTypeLike) -> Array:
    return parts[0].astype(dtype) if _fills_lanes(dtype) else _pack_pair(*parts)


def pack_rows(rows: Array) -> Array:
    """Packs [R, D] into [P, R, 128], in one pass over it; in two where D has to be padded."""
    count, width = rows.shape
    rows = jnp.pad(rows, ((0, 0), (0, padded_width(width) - width)))
    shape = packed_shape(count, width, rows.dtype)
    some = max(_BLOCK_BYTES // (rows.shape[1] * rows.dtype.itemsize) // _PACKED_ROWS, 1)
    height = min(some * _PACKED_ROWS, round_up(count, _PACKED_ROWS))

    def kernel(source: Any, packed: Any) -> None:
        store_columns(packed, source, source.dtype)

    packed: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(shape, packed_dtype(rows.dtype)),
        grid=(-(-count // height),),
        in_specs=[pl.BlockSpec((height, rows.shape[1]), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((shape[0], height, LANES), lambda i: (0, i, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=pl.CostEstimate(
            flops=0, bytes_accessed=2 * rows.size * rows.dtype.itemsize, transcendentals=0
        ),
        name="grouped_matmul_row_words",
    )(rows)
    return packed


def round_packed(packed: Array, dtype: DTypeLike) -> Array:
    """Packed rows of float32 to those of another dtype."""
    if not _fills_lanes(dtype):
        # XLA may leave a conversion there and back out, but not this.
        packed = lax.reduce_precision(packed, exponent_bits=8, mantissa_bits=7)
    planes = packed.shape[0] * jnp.dtype(dtype).itemsize // 4
    columns = _columns(planes, dtype)
    return jnp.stack([_pack([packed[at // LANES] for at in some], dtype) for some in columns])


def load_columns(
    packed: Any, first: Any, count: int, dtype: DTypeLike
) -> Iterator[tuple[int, Array]]:
    """Reads packed rows, 128 columns at a time; in a kernel.

    Args:
        packed: ref [P, M, 128].
        first: row.
        count: of rows.
        dtype: of the rows.

    Yields:
        The first column, and [count, 128] as float32 where rows are of bfloat16.
    """
    for plane, columns in enumerate(_columns(packed.shape[0], dtype)):
        both = packed[plane, pl.ds(first, count), :]
        if _fills_lanes(dtype):
            yield columns[0], both
            continue
        yield columns[0], lax.bitcast_convert_type(both << _HALF_BITS, jnp.float32)
        high = both & jnp.uint32(_HIGH)
        yield columns[1], lax.bitcast_convert_type(high, jnp.float32)


def store_columns(packed: Any, rows: Any, dtype: DTypeLike, own: Array | None = None) -> None:
    """Rounds rows and stores them packed; in a kernel.

    Args:
        packed: ref [P, M, 128].
        rows: ref [M, packed columns].
        dtype: of the packed rows.
        own: boolean [M, 1], which rows are stored; None for all.
    """
    for plane, columns in enumerate(_columns(packed.shape[0], dtype)):
        new = _pack([rows[:, at : at + LANES] for at in columns], dtype)
        packed[plane] = new if own is None else jnp.where(own, new, packed[plane])


def by_choice(values: Array, choices: int) -> Array:
    """[T*K], K values of each token, to [K, T].

    The same as `values.reshape(-1, K).T`, for which a TPU would pad K to 128 on the way: here lanes
    change places in rows of 128 tokens.
    """
    tokens = values.size // choices
    tiles = -(-tokens // LANES)
    wide = jnp.pad(values, (0, tiles * LANES * choices - values.size)).reshape(tiles, -1)
    lanes = jnp.arange(LANES * choices, dtype=jnp.int32).reshape(LANES, choices).T.reshape(-1)
    apart = wide.at[:, lanes].get(mode="promise_in_bounds").reshape(tiles, choices, LANES)
    return apart.swapaxes(0, 1).reshape(choices, -1)[:, :tokens]


def index_blocks(index: Array, rows: int, height: int) -> Array:
    """int32 [N] in `[0, rows)` to [tiles, 1, height].

    Clamped, so that no index reaches beyond the rows, whatever a caller put into a plan; DMAs run
    without bounds checks.
    """
    tiles = -(-index.shape[0] // height)
    clamped = jnp.clip(index, 0, rows - 1).astype(jnp.int32)
    return jnp.pad(clamped, (0, tiles * height - index.shape[0])).reshape(tiles, 1, height)


def start_rows(
    packed: Any,
    index: Any,
    buffer: Any,
    semaphore: Any,
    first: Any,
    count: int,
) -> None:
    """Starts the copies of rows `index[0, first + j]` to `buffer[first + j]`, j below `count`.

    Unrolled and without a predicate, so that they are scheduled beside a matmul.
    """

    def start(j: Any, carry: None) -> None:
        at = first + j
        row = packed.at[:, pl.ds(index[0, at], 1), :]
        pltpu.make_async_copy(row, buffer.at[:, pl.ds(at, 1), :], semaphore).start()

    lax.fori_loop(0, count, start, None, unroll=True)


def wait_rows(buffer: Any, semaphore: Any) -> None:
    """Waits for as many bytes as a whole buffer has."""
    pltpu.make_async_copy(buffer, buffer, semaphore).wait()
