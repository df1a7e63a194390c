"""Computation in a warpgroup's registers: the breaking of sticks, key by key.

A tile of logits `[64, K]` comes out of the matrix unit spread over the registers of 128 threads:
four neighbouring lanes hold a row, lane `l` its columns `8 n + 2 l` and `8 n + 2 l + 1` for all
`n`. Keys lie in a tile in such an order (`key_places`) that these are a run of `K / 4` neighbouring
keys. A running product over the keys is then one multiplication an element, and two exchanges
between lanes a row: exact in float32, without a logarithm, a triangular matrix product or shared
memory.

The interpreter of Pallas can run neither such code nor a matrix product with an operand in
registers. Inside `simulated()`, both are replaced by plain JAX.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.stickbreaking.gpu import instructions

_SIMULATED = contextvars.ContextVar("simulated", default=False)

TILE = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)
COLUMNS = plgpu.Layout.WGMMA.reduce(0)


@contextlib.contextmanager
def simulated(**parameters: Any) -> Iterator[None]:
    """Runs the kernels that are traced inside in the interpreter of Pallas, on any machine.

    Args:
      **parameters: of `plgpu.InterpretGPUParams`, such as `detect_races=True`.
    """
    token = _SIMULATED.set(True)
    try:
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**parameters)):
            yield
    finally:
        _SIMULATED.reset(token)


def key_places(size: int) -> np.ndarray:
    """Int `[size]`: the place among the keys of a block, nearest last, of each column of a tile."""
    column = np.arange(size)
    return column % 8 // 2 * (size // 4) + column // 8 * 2 + column % 2


def permute_keys(array: jax.Array, size: int) -> jax.Array:
    """Puts `[B, S, ...]`, in blocks of `size` keys, in the order of `key_places`."""
    batch, length, *rest = array.shape
    blocks = array.reshape(batch, length // size, 4, size // 8, 2, *rest)
    return jnp.swapaxes(blocks, 2, 3).reshape(array.shape)


def restore_keys(array: jax.Array, size: int) -> jax.Array:
    """The inverse of `permute_keys`."""
    batch, length, *rest = array.shape
    blocks = array.reshape(batch, length // size, size // 8, 4, 2, *rest)
    return jnp.swapaxes(blocks, 2, 3).reshape(array.shape)


def column_places(shape: tuple[int, ...]) -> jax.Array:
    """Int32 tile: `key_places` of its columns."""
    column = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=TILE)
    return (column & 7) // 2 * (shape[1] // 4) + column // 8 * 2 + (column & 1)


def accumulate(accumulator: jax.Array, a: jax.Array, b: Any) -> jax.Array:
    """`accumulator + a @ b`, `a` in registers, `b` a reference to shared memory."""
    if _SIMULATED.get():
        return accumulator + _simulated_product(a, b[...])
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(accumulator))


def accumulate_transposed(accumulator: jax.Array, *factors: tuple[Any, Any]) -> jax.Array:
    """`accumulator` and the sum of `a.T @ b`, of references to shared memory."""
    if _SIMULATED.get():
        for a, b in factors:
            accumulator = accumulator + _simulated_product(a[...].T, b[...])
        return accumulator

    def add(ref: Any) -> None:
        for a, b in factors:
            plgpu.wgmma(ref, a.transpose((1, 0)), b)

    return pl.run_state(add)(plgpu.ACC.init(accumulator))


def _simulated_product(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    product = jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
    # The matrix unit would have read through the asynchronous proxy, as copies write.
    plgpu.commit_smem()
    return product


def break_sticks(logits: jax.Array, stick: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Lets the keys of a tile take their parts of the sticks, the nearest first.

    Args:
      logits: float32 tile `[64, K]`, to base 2, at most 92; `-inf` where the key is not seen.
      stick: float32 `[64]`, what nearer keys have left.
      dtype: of the weights.

    Returns:
      weights `[64, K]` and the sticks that the tile leaves.
    """
    if _SIMULATED.get():
        weights, stick = _break_sticks(logits, stick)
        return weights.astype(dtype), stick
    tile, row = logits.shape, stick.shape

    @plgpu.inline_mgpu(
        arg_types=(TILE, ROWS),
        return_type=(
            plgpu.ShapeDtypeStruct(tile, dtype, layout=TILE),
            plgpu.ShapeDtypeStruct(row, jnp.dtype(jnp.float32), layout=ROWS),
        ),
    )
    def run(_: Any, logits: Any, stick: Any) -> Any:
        return instructions.break_sticks(logits, stick, dtype)

    return run(logits, stick)


def d_logits(
    logits: jax.Array,
    d_weights: jax.Array,
    stick: jax.Array,
    rest: jax.Array,
    bound: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Breaks the sticks of a tile again and differentiates.

    With `a = A (dO . V)` of the weights A as they were rounded, and `rest` what all keys from a
    point on must add up to, `dz_j = a_j - beta_j rest_j`. In each run of keys the rest is bounded
    by what its stick can still give, so that rounding errors end with the stick.

    Args:
      logits: as in `break_sticks`.
      d_weights: float32 tile, the gradients of the weights, `dO . V`.
      stick: float32 `[64]`, what nearer keys have left.
      rest: float32 `[64]`, the sum of `a` over this tile and all farther keys, and of
        `drem * rem`.
      bound: float32 `[64]`, largest magnitude of a `rest` where the stick is whole.
      dtype: of the tiles that are returned.

    Returns:
      weights, gradients of the logits, sticks and rests behind the tile.
    """
    if _SIMULATED.get():
        return _d_logits(logits, d_weights, stick, rest, bound, dtype)
    tile, rows = logits.shape, stick.shape
    narrow = plgpu.ShapeDtypeStruct(tile, dtype, layout=TILE)
    row = plgpu.ShapeDtypeStruct(rows, jnp.dtype(jnp.float32), layout=ROWS)

    @plgpu.inline_mgpu(
        arg_types=(TILE, TILE, ROWS, ROWS, ROWS), return_type=(narrow, narrow, row, row)
    )
    def run(_: Any, logits: Any, d_weights: Any, stick: Any, rest: Any, bound: Any) -> Any:
        return instructions.d_logits(logits, d_weights, stick, rest, bound, dtype)

    weights, gradients, stick, rest = run(logits, d_weights, stick, rest, bound)
    return weights, gradients, stick, rest


def _break_sticks(logits: jax.Array, stick: jax.Array) -> tuple[jax.Array, jax.Array]:
    share, before, stick = _shares(logits, stick)
    return share * before, stick


def _d_logits(
    logits: jax.Array,
    d_weights: jax.Array,
    stick: jax.Array,
    rest: jax.Array,
    bound: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    share, before, left = _shares(logits, stick)
    weights = (share * before).astype(dtype)
    a = _in_order(weights.astype(jnp.float32) * d_weights)
    # Run by run, as the lanes do it.
    runs = (a.shape[0], 4, a.shape[1] // 4)
    parts = a.reshape(runs)
    from_run = jnp.cumsum(parts.sum(-1)[:, ::-1], axis=1)[:, ::-1]
    remains = rest[:, None] - (from_run - parts.sum(-1))
    limit = bound[:, None] * _in_order(before).reshape(runs)[:, :, -1]
    remains = jnp.clip(remains, -limit, limit)
    nearer = jnp.cumsum(parts[:, :, ::-1], axis=2)[:, :, ::-1] - parts
    remains = _as_columns((remains[:, :, None] - nearer).reshape(a.shape))
    gradients = _as_columns(a) - share * remains
    return weights, gradients.astype(dtype), left, rest - from_run[:, 0]


def _shares(logits: jax.Array, stick: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each key's share of the stick that reaches it, that stick, and the tile's rest."""
    odds = jnp.exp2(logits)
    keep = 1 / (1 + odds)
    left = jnp.cumprod(_in_order(keep)[:, ::-1], axis=1)[:, ::-1] * stick[:, None]
    before = jnp.concatenate([left[:, 1:], stick[:, None]], axis=1)
    return odds * keep, _as_columns(before), left[:, 0]


def _in_order(tile: jax.Array) -> jax.Array:
    return restore_keys(tile, tile.shape[1])


def _as_columns(tile: jax.Array) -> jax.Array:
    return permute_keys(tile, tile.shape[1])
