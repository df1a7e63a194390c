"""Forward kernel for TPUs: a block of rows walks over its blocks of keys, the nearest first.

Keys and values stay in HBM and are fetched block by block, two buffers each, while the blocks
before them are computed. The number of blocks is that of the walk, or less where the stick runs
out: blocks that are not visited cost neither computation nor traffic (one block of keys at most is
fetched in vain).

The product of weights and values is delayed by one block. It then does not depend on anything else
in its iteration, so that the compiler can keep the matrix unit busy with it, and with the products
of keys and queries, while the vector units turn logits into weights.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.stickbreaking.tpu import tile
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import generation_in_force
from pallas_kernels.attention.stickbreaking.tpu.layout import (
    COLUMNS,
    COUNT,
    FULL_HIGH,
    FULL_LOW,
    STOP,
    STRIP,
    SUBLANES,
    Walk,
    nearest_first,
)


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    walk: Walk,
    *,
    scale: float,
    tolerance: float,
    block: int,
    with_error: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array | None]:
    """Runs the kernel.

    Args:
      query: `[B, G, rows, d]`.
      key: `[B, G, blocks, block, d]`, in running order.
      value: `[B, G, blocks, dv, block]`, in running order.
      walk: what rows see.
      scale: of the logits.
      tolerance: of the early exit.
      block: rows of a block.
      with_error: also return what rounding took from the output.

    Returns:
      output `[B, G, rows, dv]` in the dtype of the values; what its rounding took from it, in the
      same dtype, or None; float32 `[B, G, rows]`, minus the binary logarithm of the remainder;
      int32 `[B, G, rows]`, how many blocks of keys were visited, or None without a tolerance.
    """
    batch, groups, rows, width = query.shape
    blocks, key_block = key.shape[2:4]
    value_width = value.shape[3]
    of_rows = lambda b, g, i, *_: (b, g, i, 0)  # noqa: E731
    row = pl.BlockSpec((None, None, 1, block), lambda b, g, i, *_: (b, g, 0, i))
    inputs = {"query": (query, pl.BlockSpec((None, None, block, width), of_rows))}
    inputs |= walk_inputs(walk, block)
    inputs["key"] = (key, pl.BlockSpec(memory_space=pl.ANY))
    inputs["value"] = (value, pl.BlockSpec(memory_space=pl.ANY))
    out_specs = [pl.BlockSpec((None, None, block, value_width), of_rows), row]
    out_shape = [
        jax.ShapeDtypeStruct((batch, groups, rows, value_width), value.dtype),
        jax.ShapeDtypeStruct((batch, groups, 1, rows), jnp.float32),
    ]
    if tolerance:
        out_specs.append(row)
        out_shape.append(jax.ShapeDtypeStruct((batch, groups, 1, rows), jnp.int32))
    if with_error:
        out_specs.append(out_specs[0])
        out_shape.append(out_shape[0])
    pairs = batch * groups * rows * blocks * key_block // 2
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            names=tuple(inputs),
            strides=walk_strides(walk, groups, rows // block),
            scale=scale,
            tolerance=tolerance,
            with_error=with_error,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, groups, rows // block),
            in_specs=[spec for _, spec in inputs.values()],
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((2, key_block, width), key.dtype),
                pltpu.VMEM((2, value_width, key_block), value.dtype),
                pltpu.VMEM((key_block, block), value.dtype),
                pltpu.VMEM((value_width, block), jnp.float32),
                pltpu.VMEM((SUBLANES, block), jnp.float32),
                pltpu.VMEM((2, key_block, block), jnp.float32),
                pltpu.SemaphoreType.DMA((2, 2)),
            ],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            disable_bounds_checks=True,
            vmem_limit_bytes=generation_in_force().vmem,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * pairs * (width + value_width),
            transcendentals=3 * pairs,
            bytes_accessed=(query.size + key.size + value.size) * query.dtype.itemsize,
        ),
        name="stickbreaking_attention_forward",
    )(walk.table, *(array for array, _ in inputs.values()))
    output, spent, *rest = results
    error = rest.pop() if with_error else None
    return output, error, spent[:, :, 0], rest[0][:, :, 0] if rest else None


def walk_inputs(walk: Walk, block: int) -> dict[str, tuple[jax.Array, pl.BlockSpec]]:
    """The arrays of a walk that are there, and how a grid `(B, G, row blocks)` reads them."""
    inputs = {"last": (walk.last, pl.BlockSpec((1, block), lambda b, g, i, *_: (0, i)))}
    if walk.first is not None:
        batch, groups = (size > 1 for size in walk.first.shape[:2])
        inputs["first"] = (
            walk.first,
            pl.BlockSpec((None, None, 1, block), lambda b, g, i, *_: (b * batch, g * groups, 0, i)),
        )
    if walk.query_ids is not None and walk.key_ids is not None:
        inputs["query_ids"] = (
            walk.query_ids,
            pl.BlockSpec((None, 1, block), lambda b, g, i, *_: (b, 0, i)),
        )
        inputs["key_ids"] = (
            walk.key_ids,
            pl.BlockSpec((None, *walk.key_ids.shape[1:]), lambda b, g, i, *_: (b, 0, 0, 0, 0)),
        )
    return inputs


def walk_strides(walk: Walk, groups: int, row_blocks: int) -> tuple[int, int]:
    """Strides of a walk's table, from one batch row to the next and from one head to the next."""
    entries = walk.table.size // (row_blocks * COLUMNS)
    of_heads = walk.first is not None and walk.first.shape[1] > 1
    of_batch = entries > (groups if of_heads else 1)
    group = row_blocks * COLUMNS if of_heads else 0
    return (row_blocks * COLUMNS * (groups if of_heads else 1) if of_batch else 0), group


def _kernel(
    table: Any,
    *refs: Any,
    names: tuple[str, ...],
    strides: tuple[int, int],
    scale: float,
    tolerance: float,
    with_error: bool,
) -> None:
    inputs = dict(zip(names, refs, strict=False))
    outputs = refs[len(names) : -7]
    output, spent_of_rows = outputs[:2]
    keys, values, weights, sums, spent, bounds, semaphores = refs[-7:]
    query, key, value = inputs["query"], inputs["key"], inputs["value"]
    b, g, i = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    entry = b * strides[0] + g * strides[1] + i * COLUMNS
    stop, count = table[entry + STOP], table[entry + COUNT]
    key_block = keys.shape[1]

    def fetch_key(n: jax.Array) -> Any:
        return pltpu.make_async_copy(
            key.at[b, g, stop - n], keys.at[n & 1], semaphores.at[0, n & 1]
        )

    def fetch_value(n: jax.Array) -> Any:
        return pltpu.make_async_copy(
            value.at[b, g, stop - n], values.at[n & 1], semaphores.at[1, n & 1]
        )

    def add_outputs(n: jax.Array) -> None:
        sums[...] += tile.dot("dk,kq->dq", values[n & 1], weights[...])

    def compute(n: jax.Array, kind: jax.Array) -> None:
        products = tile.dot("kd,qd->kq", nearest_first(keys[n & 1]), query[...])
        add_outputs(n + 1)
        behind = spent[...]
        for strip, stored in strips(key_block):
            weights[stored], behind = tile.weights(
                products[strip], bounds[kind, strip], behind, scale, weights.dtype
            )
        spent[...] = behind

    def step(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        n, _ = carry
        pl.when(n + 1 < count)(lambda: fetch_key(n + 1).start())
        fetch_value(n).start()
        fetch_key(n).wait()
        pl.when(n > 0)(lambda: fetch_value(n - 1).wait())
        compute(n, kind_of_bounds(bounds, inputs, table, entry, stop - n))
        return n + 1, is_unfinished(spent, tolerance)

    pl.when(i == 0)(lambda: clear_bounds(bounds))
    sums[...] = jnp.zeros_like(sums)
    spent[...] = jnp.zeros_like(spent)
    # The first iteration adds nothing, of values that must not be NaN.
    weights[...] = jnp.zeros_like(weights)
    values[1] = jnp.zeros_like(values[1])
    pl.when(count > 0)(lambda: fetch_key(jnp.int32(0)).start())
    visited, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < count) & carry[1], step, (jnp.int32(0), jnp.bool_(True))
    )
    pl.when(visited < count)(lambda: fetch_key(visited).wait())
    pl.when(visited > 0)(lambda: fetch_value(visited - 1).wait())
    add_outputs(visited + 1)
    exact = sums[...].T
    output[...] = exact.astype(output.dtype)
    if with_error:
        outputs[-1][...] = (exact - output[...].astype(jnp.float32)).astype(output.dtype)
    spent_of_rows[...] = spent[:1]
    if tolerance:
        outputs[2][...] = jnp.full(outputs[2].shape, visited, jnp.int32)


def strips(key_block: int) -> list[tuple[slice, slice]]:
    """The strips of a block of keys, nearest first: their places in `nearest_first` and in HBM."""
    starts = range(0, key_block, STRIP)
    places = [slice(start, start + STRIP) for start in starts]
    return list(zip(places, reversed(places), strict=True))


def clear_bounds(bounds: Any) -> None:
    """Fills what logits are bounded to where rows see all keys: the first of the two bounds."""
    bounds[0] = jnp.full(bounds.shape[1:], tile.LARGEST_LOGIT)


def kind_of_bounds(
    bounds: Any, inputs: dict[str, Any], table: Any, entry: jax.Array, index: jax.Array
) -> jax.Array:
    """Tells which of the two bounds holds for that key block; computes the second if it does.

    One code for tiles with and without a mask: a load and no more, where masks that are computed
    on the way would cost operations and registers in every tile.

    Args:
      bounds: float32 `[2, keys, rows]`, scratch.
      inputs: of the kernel, by name.
      table: see `Walk`.
      entry: of the block of rows in the table.
      index: of the block of keys.
    """
    key_block = bounds.shape[1]
    full = (index >= table[entry + FULL_LOW]) & (index <= table[entry + FULL_HIGH])
    first, query_ids, key_ids = (inputs.get(name) for name in ("first", "query_ids", "key_ids"))

    def fill(strip: jax.Array, carry: jax.Array) -> jax.Array:
        start = pl.multiple_of(strip * STRIP, STRIP)
        bounds[1, pl.ds(start, STRIP)] = tile.bounds_of_strip(
            index * key_block + (key_block - STRIP - start),
            inputs["last"][...],
            None if first is None else first[...],
            None if query_ids is None else query_ids[...],
            None if key_ids is None else key_ids[index, strip],
        )
        return carry

    @pl.when(~full)
    def _() -> None:
        jax.lax.fori_loop(0, key_block // STRIP, fill, jnp.int32(0))

    return jnp.where(full, 0, 1)


def is_unfinished(spent: Any, tolerance: float) -> jax.Array:
    """Returns whether any row has more stick left than the tolerance; NaN goes on, to show."""
    if not tolerance:
        return jnp.bool_(True)
    return ~(jnp.min(spent[...]) > -math.log2(tolerance))
