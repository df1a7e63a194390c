"""Tiles of the kernels for Hopper GPUs: their blocks, and which keys of a tile are seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.attention.stickbreaking.gpu import registers

# Rows of a tile: what a warpgroup multiplies at a time.
ROWS_PER_GROUP = 64
COMPUTE_GROUPS = 2
BLOCK_ROWS = ROWS_PER_GROUP * COMPUTE_GROUPS
# Logits, to base 2, are bounded to this: keys with odds of 2**92 leave nothing in float32, and the
# odds themselves stay finite.
_LARGEST_LOGIT = 92.0

# The classes have an abstract property without need, which type checkers take at its word.
_TRANSFORMS: Any = (plgpu.TilingTransform, plgpu.SwizzleTransform)
_MATRIX_UNIT_FORM = (_TRANSFORMS[0]((8, 64)), _TRANSFORMS[1](128))
COMPILER = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Settings that a kernel is compiled for, apart from the shapes of its arrays.

    Attributes:
      scale: factor of the logits.
      nearest: the smallest distance at which a key is seen, 0 or 1.
      window: positions that a query looks back over, its own included; None: all.
      tolerance: of the early exit; 0 is off.
      key_length: keys that are no padding of the last block.
      repeats: rows that stand at the same position: row `r` stands at `r // repeats + offset`.
      segments: whether queries and keys have ids that must be equal.
      keys: keys in a block.
      stages: blocks of keys in shared memory at a time.
    """

    scale: float
    nearest: int
    window: int | None
    tolerance: float
    key_length: int
    repeats: int
    segments: bool
    keys: int
    stages: int

    def key_blocks(
        self, first: jax.Array, rows: int, offset: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Blocks of keys that some of these rows see: from the first to before the second."""
        low, high = self._key_range(first, first + rows - 1, offset)
        return low // self.keys, _blocks(high, self.keys)

    def full_key_blocks(
        self, first: jax.Array, rows: int, offset: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Blocks of which these rows see all keys, but for their segments."""
        low, high = self._key_range(first + rows - 1, first, offset)
        return _blocks(low, self.keys), high // self.keys

    def _key_range(
        self, first: jax.Array, last: jax.Array, offset: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Keys that are not too far for row `first`, and not in the future of row `last`."""
        high = jnp.clip(last // self.repeats + offset - self.nearest + 1, 0, self.key_length)
        if self.window is None:
            return jnp.zeros_like(high), high
        low = first // self.repeats + offset - self.window + 1
        return jnp.clip(low, 0, self.key_length), high

    def phases(
        self, first: jax.Array, high: jax.Array, steps: jax.Array, offset: jax.Array
    ) -> list[tuple[str, jax.Array]]:
        """Phases of the walk of 64 rows back over blocks of keys, from before block `high` on.

        Returns:
          kinds of steps and where they end: first come blocks `unseen` by these rows (which lie in
          their future), then `masked` ones, then those seen as a whole, `full`, then masked ones
          at the end of the window.
        """
        _, own_high = self.key_blocks(first, ROWS_PER_GROUP, offset)
        full_low, full_high = self.full_key_blocks(first, ROWS_PER_GROUP, offset)
        unseen = jnp.clip(high - own_high, 0, steps)
        near = jnp.clip(high - full_high, unseen, steps)
        full = jnp.clip(high - full_low, near, steps)
        kinds = [("unseen", unseen), ("masked", near), ("full", full)]
        return kinds if self.window is None else [*kinds, ("masked", steps)]

    def row_blocks(
        self, block: jax.Array, row_blocks: int, offset: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Blocks of 128 rows that see a block of keys: from the first to before the second."""
        position = block * self.keys - offset + self.nearest
        before = jnp.maximum(position * self.repeats - (BLOCK_ROWS - 1), 0)
        low = jnp.minimum(_blocks(before, BLOCK_ROWS), row_blocks)
        if self.window is None:
            return low, jnp.full_like(low, row_blocks)
        last = (block + 1) * self.keys - offset + self.window - 2
        after = jnp.maximum((last + 1) * self.repeats, 0)
        return low, jnp.minimum(_blocks(after, BLOCK_ROWS), row_blocks)

    def scaled(self, products: jax.Array) -> jax.Array:
        """Logits to base 2."""
        return jnp.minimum(products * (self.scale * math.log2(math.e)), _LARGEST_LOGIT)

    def masked(
        self, logits: jax.Array, row: jax.Array, key: jax.Array, offset: jax.Array
    ) -> jax.Array:
        """Logits of the rows from `row` on, `-inf` for keys (from `key` on) out of their sight."""
        rows = plgpu.broadcasted_iota(jnp.int32, logits.shape, 0, layout=registers.TILE) + row
        if self.repeats > 1:
            rows = rows // self.repeats
        columns = registers.column_places(logits.shape) + key
        distance = rows + offset - columns
        seen = (distance >= self.nearest) & (columns < self.key_length)
        if self.window is not None:
            seen &= distance < self.window
        return jnp.where(seen, logits, -jnp.inf)

    def same_segment(
        self, logits: jax.Array, row_ids: jax.Array | None, column_ids: jax.Array | None
    ) -> jax.Array:
        """Logits, `-inf` for keys of other segments."""
        if row_ids is None or column_ids is None:
            return logits
        rows = jax.lax.broadcast_in_dim(row_ids, logits.shape, [0])
        columns = jax.lax.broadcast_in_dim(column_ids, logits.shape, [1])
        return jnp.where(rows == columns, logits, -jnp.inf)


def product(rows: Any, columns: Any, tile: tuple[int, int]) -> jax.Array:
    """`rows @ columns.T`, float32, of references to shared memory."""

    def multiply(accumulator: Any) -> jax.Array:
        plgpu.wgmma(accumulator, rows, columns.transpose((1, 0)))
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC(tile, jnp.float32))


def load_rows(reference: Any) -> jax.Array:
    """Loads `[64]`, one number for each row of a tile."""
    return plgpu.load(reference, layout=registers.ROWS, optimized=False)


def load_columns(reference: Any) -> jax.Array:
    """Loads `[K]`, one number for each column of a tile."""
    return plgpu.load(reference, layout=registers.COLUMNS, optimized=False)


def shared_tiles(*shape: int, dtype: Any) -> Any:
    """Shared memory in the form that copies write and the matrix unit reads."""
    return plgpu.SMEM(shape, dtype, transforms=_MATRIX_UNIT_FORM)


def _blocks(length: jax.Array, size: int) -> jax.Array:
    return pl.cdiv(length, jnp.int32(size))
