"""Rows in the form in which a DMA can fetch any one of them, and the fetching."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
# A row of this many elements fills whole registers, in any dtype.
ROW_MULTIPLE = LANES * SUBLANES


def round_up(x: int, multiple: int) -> int:
    """The smallest multiple that is at least x."""
    return -(-x // multiple) * multiple


def row_view(rows: Array) -> Array:
    """[R, D] to [R, ceil(D / 1024) * 8, 128].

    In a 2-D array, rows narrower than 32 bits share words and cannot be sliced one by one; here a
    row is contiguous. The change of layout is one pass over the array.
    """
    width = rows.shape[1]
    padded = jnp.pad(rows, ((0, 0), (0, round_up(width, ROW_MULTIPLE) - width)))
    return padded.reshape(rows.shape[0], -1, LANES)


def flat_view(rows: Array, width: int) -> Array:
    """The inverse of `row_view`, on arrays or on values in a kernel: [R, S, 128] to [R, width]."""
    flat = rows.reshape(rows.shape[0], -1)
    return flat if flat.shape[1] == width else flat[:, :width]


def index_blocks(index: Array, rows: int, height: int) -> Array:
    """int32 [N] in `[0, rows)` to [tiles, 1, height].

    Clamped, so that no index reaches beyond the rows, whatever a caller put into a plan; DMAs run
    without bounds checks.
    """
    tiles = -(-index.shape[0] // height)
    clamped = jnp.clip(index, 0, rows - 1).astype(jnp.int32)
    return jnp.pad(clamped, (0, tiles * height - index.shape[0])).reshape(tiles, 1, height)


def start_rows(
    rows: Any,
    index: Any,
    buffer: Any,
    semaphore: Any,
    first: jax.typing.ArrayLike,
    count: int,
) -> None:
    """Starts the copies of rows `index[0, first + j]` to `buffer[first + j]`, j below `count`.

    Unrolled and without a predicate, so that they are scheduled beside a matmul.
    """

    def start(j: jax.typing.ArrayLike, carry: None) -> None:
        at = first + j
        pltpu.make_async_copy(rows.at[index[0, at]], buffer.at[at], semaphore).start()

    lax.fori_loop(0, count, start, None, unroll=True)


def wait_rows(buffer: Any, semaphore: Any) -> None:
    """Waits for as many bytes as a whole buffer has."""
    pltpu.make_async_copy(buffer, buffer, semaphore).wait()
