"""Packed rows: what lies where, there and back."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.tpu.rows import (
    LANES,
    by_choice,
    load_columns,
    pack_rows,
    packed_shape,
    padded_width,
    round_packed,
    store_columns,
    unpacked_dtype,
)
from tests.contracts.sweep import sweep

SHAPES = [(1, 1), (5, 20), (16, 256), (17, 300), (9, 1024), (3, 1025), (40, 3000)]
DTYPES = [jnp.bfloat16, jnp.float32]


def _rows(shape: tuple[int, int], dtype: Any) -> Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape).astype(dtype)


def _unpacked(packed: Array, width: int) -> np.ndarray:
    """The columns of packed rows, by their definition."""
    planes, rows, _ = packed.shape
    flat = np.asarray(packed).swapaxes(0, 1).reshape(rows, -1)
    if unpacked_dtype(packed) == jnp.float32:
        return flat[:, :width]
    part = min(planes * LANES, 512)
    parts = flat.reshape(rows, -1, 1, part)
    halves = np.concatenate([parts & 0xFFFF, parts >> 16], axis=2).astype(np.uint16)
    return halves.reshape(rows, -1)[:, :width].view(jnp.bfloat16)


@sweep(
    ("shape", "dtype"),
    itertools.product(SHAPES, DTYPES),
    [((5, 20), jnp.bfloat16), ((3, 1025), jnp.bfloat16), ((17, 300), jnp.float32)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_words_hold_every_column_where_they_should(shape, dtype):
    rows = _rows(shape, dtype)
    with pltpu.force_tpu_interpret_mode():
        packed = pack_rows(rows)
    assert packed.shape == packed_shape(shape[0], shape[1], dtype)
    assert unpacked_dtype(packed) == dtype
    assert _unpacked(packed, shape[1]).tobytes() == np.asarray(rows).tobytes()


@sweep("shape", SHAPES, [(17, 300)], ids=str)
def test_rounding_packed_rows_is_rounding_rows(shape):
    rows = _rows(shape, jnp.float32)
    with pltpu.force_tpu_interpret_mode():
        packed = jax.jit(round_packed, static_argnums=1)(pack_rows(rows), jnp.bfloat16)
        expected = pack_rows(rows.astype(jnp.bfloat16))
    np.testing.assert_array_equal(packed, expected)


@sweep(
    ("width", "dtype"),
    itertools.product([20, 256, 1024, 3000], DTYPES),
    [(20, jnp.float32), (3000, jnp.bfloat16)],
)
def test_a_kernel_reads_what_it_stored_and_leaves_others_rows(width, dtype):
    height, columns = 16, padded_width(width)
    rows, before = _rows((height, columns), jnp.float32), _rows((height, columns), dtype)

    def kernel(source: Any, old: Any, packed: Any, read: Any) -> None:
        own = jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0) % 3 == 0
        packed[...] = old[...]
        store_columns(packed, source, dtype, own)
        for column, values in load_columns(packed, 4, 8, dtype):
            read[:, column : column + LANES] = values.astype(jnp.float32)

    with pltpu.force_tpu_interpret_mode():
        old = pack_rows(before)
        packed, read = pl.pallas_call(
            kernel,
            out_shape=(
                jax.ShapeDtypeStruct(old.shape, old.dtype),
                jax.ShapeDtypeStruct((8, columns), jnp.float32),
            ),
        )(rows, old)
    own = np.arange(height)[:, None] % 3 == 0
    expected = np.where(own, rows.astype(dtype), before)
    assert _unpacked(packed, columns).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(read, expected[4:12].astype(np.float32))


def test_a_nan_and_an_infinity_stay_what_they_are():
    rows = jnp.array([[np.nan, np.inf, -np.inf, -0.0]], jnp.bfloat16)
    with pltpu.force_tpu_interpret_mode():
        values = _unpacked(pack_rows(rows), 4).astype(np.float32)[0]
    assert np.isnan(values[0])
    np.testing.assert_array_equal(values[1:], [np.inf, -np.inf, -0.0])
    assert np.signbit(values[3])


@pytest.mark.parametrize(("tokens", "choices"), [(1, 1), (128, 2), (300, 3), (77, 8), (513, 1)])
def test_choices_are_put_above_tokens(tokens, choices):
    values = jnp.arange(tokens * choices, dtype=jnp.int32) * 7
    expected = np.asarray(values).reshape(tokens, choices).T
    np.testing.assert_array_equal(by_choice(values, choices), expected)
