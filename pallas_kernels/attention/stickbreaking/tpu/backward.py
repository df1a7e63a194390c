"""Backward kernel for TPUs: all three gradients in one walk, without atomics.

A block of rows walks over its blocks of keys as in the forward pass and computes the weights again.
The gradients of queries are summed over the walk; those of keys and values stay in VMEM, in
float32, for all keys of a key/value head, while its blocks of rows follow one another. So each sum
has one order, whatever the schedule: results are the same bit for bit. Five matrix products a tile
are enough, where two kernels, one for the queries and one for keys and values, need seven.

The three products with gradients of logits or weights are delayed by one block of keys, as the
product with the values is in the forward kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.stickbreaking.tpu import tile
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import generation_in_force
from pallas_kernels.attention.stickbreaking.tpu.forward import (
    clear_bounds,
    kind_of_bounds,
    strips,
    walk_inputs,
    walk_strides,
)
from pallas_kernels.attention.stickbreaking.tpu.layout import (
    COLUMNS,
    COUNT,
    STOP,
    SUBLANES,
    Walk,
    nearest_first,
)


def backward(
    query: jax.Array,
    d_output: jax.Array,
    output: tuple[jax.Array, ...],
    key: jax.Array,
    value: jax.Array,
    spent: jax.Array,
    rest: jax.Array,
    d_remainder: jax.Array,
    largest: jax.Array,
    walk: Walk,
    *,
    scale: float,
    block: int,
    d_query_dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs the kernel.

    Args:
      query: `[B, G, rows, d]`.
      d_output: `[B, G, rows, dv]`.
      output: arrays `[B, G, rows, dv]` that add up to the output: it and what rounding took from
        it. Given with the nearest keys: of all others `rest` has it already.
      key: `[B, G, blocks, block, d]`, in running order.
      value: `[B, G, blocks, block, dv]`, in running order.
      spent: float32 `[B, G, rows]`, what is spent of the sticks in front of these keys.
      rest: float32 `[B, G, rows]`, what these keys and all farther ones have to add up to, less
        the products of `output` and `d_output`.
      d_remainder: float32 `[B, G, rows]`.
      largest: float32 `[B, G]`, the largest magnitude of a value.
      walk: what rows see.
      scale: of the logits.
      block: rows of a block.
      d_query_dtype: of the gradients of queries; float32 where those of other keys are added.

    Returns:
      Gradients of queries `[B, G, rows, d]`; float32 gradients of keys / scale
      `[B, G, blocks, block, d]` and of values `[B, G, blocks, block, dv]`; `spent` and `rest`
      behind these keys.
    """
    batch, groups, rows, width = query.shape
    blocks, key_block, value_width = value.shape[2:]
    in_rows = lambda b, g, i, *_: (b, g, i, 0)  # noqa: E731
    row = pl.BlockSpec((None, None, 1, block), lambda b, g, i, *_: (b, g, 0, i))
    of_values = pl.BlockSpec((None, None, block, value_width), in_rows)
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    inputs = {
        "query": (query, pl.BlockSpec((None, None, block, width), in_rows)),
        "d_output": (d_output, of_values),
        "spent": (spent[:, :, None], row),
        "rest": (rest[:, :, None], row),
        "d_remainder": (d_remainder[:, :, None], row),
        "largest": (
            largest[:, :, None, None],
            pl.BlockSpec((None, None, 1, 1), lambda b, g, i, *_: (b, g, 0, 0)),
        ),
    }
    inputs |= {f"output_{n}": (part, of_values) for n, part in enumerate(output)}
    inputs |= walk_inputs(walk, block)
    inputs["key"] = (key, in_hbm)
    inputs["value"] = (value, in_hbm)
    inputs["key_columns"] = (jnp.swapaxes(key, 3, 4), in_hbm)
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    pairs = batch * groups * rows * blocks * key_block // 2
    d_query, d_key, d_value, spent, rest = pl.pallas_call(
        functools.partial(
            _kernel,
            names=tuple(inputs),
            strides=walk_strides(walk, groups, rows // block),
            scale=scale,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, groups, rows // block),
            in_specs=[spec for _, spec in inputs.values()],
            out_specs=[
                pl.BlockSpec((None, None, block, width), in_rows),
                in_hbm,
                in_hbm,
                row,
                row,
            ],
            scratch_shapes=[
                pltpu.VMEM((2, key_block, width), key.dtype),
                pltpu.VMEM((2, key_block, value_width), value.dtype),
                pltpu.VMEM((2, width, key_block), key.dtype),
                pltpu.VMEM((key_block, block), value.dtype),
                pltpu.VMEM((key_block, block), key.dtype),
                pltpu.VMEM((width, block), jnp.float32),
                pltpu.VMEM((blocks, key_block, width), jnp.float32),
                pltpu.VMEM((blocks, key_block, value_width), jnp.float32),
                pltpu.VMEM((SUBLANES, block), jnp.float32),
                pltpu.VMEM((SUBLANES, block), jnp.float32),
                pltpu.VMEM((SUBLANES, block), jnp.float32),
                pltpu.VMEM((2, key_block, block), jnp.float32),
                pltpu.SemaphoreType.DMA((3, 2)),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, groups, rows, width), d_query_dtype),
            float32(key.shape),
            float32(value.shape),
            float32((batch, groups, 1, rows)),
            float32((batch, groups, 1, rows)),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            disable_bounds_checks=True,
            vmem_limit_bytes=generation_in_force().vmem,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * pairs * (3 * width + 2 * value_width),
            transcendentals=4 * pairs,
            bytes_accessed=2 * (query.size + key.size + value.size) * 4,
        ),
        name="stickbreaking_attention_backward",
    )(walk.table, *(array for array, _ in inputs.values()))
    return d_query, d_key, d_value, spent[:, :, 0], rest[:, :, 0]


def _kernel(
    table: Any, *refs: Any, names: tuple[str, ...], strides: tuple[int, int], scale: float
) -> None:
    inputs = dict(zip(names, refs, strict=False))
    d_query, d_key_out, d_value_out, spent_behind, rest_behind = refs[len(names) : len(names) + 5]
    keys, values, key_columns, weights, d_logits, sums, d_key, d_value = refs[len(names) + 5 : -6]
    spent, rest, bound, bounds, fetched, written = refs[-6:]
    query, d_output = inputs["query"], inputs["d_output"]
    b, g, i = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    entry = b * strides[0] + g * strides[1] + i * COLUMNS
    stop, count = table[entry + STOP], table[entry + COUNT]
    blocks, key_block = d_key.shape[:2]
    last_rows = i == pl.num_programs(2) - 1

    def fetch(name: str, buffers: Any, semaphore: int, n: jax.Array) -> Any:
        return pltpu.make_async_copy(
            inputs[name].at[b, g, stop - n], buffers.at[n & 1], fetched.at[semaphore, n & 1]
        )

    fetch_key = functools.partial(fetch, "key", keys, 0)
    fetch_value = functools.partial(fetch, "value", values, 1)
    fetch_columns = functools.partial(fetch, "key_columns", key_columns, 2)

    def write(index: jax.Array) -> tuple[Any, Any]:
        return (
            pltpu.make_async_copy(d_key.at[index], d_key_out.at[b, g, index], written.at[0]),
            pltpu.make_async_copy(d_value.at[index], d_value_out.at[b, g, index], written.at[1]),
        )

    def add_gradients(n: jax.Array) -> None:
        index = jnp.clip(stop - n, 0, blocks - 1)
        d_value[index] += tile.dot("kq,qd->kd", weights[...], d_output[...])
        d_key[index] += tile.dot("kq,qd->kd", d_logits[...], query[...])
        sums[...] += tile.dot("dk,kq->dq", key_columns[n & 1], d_logits[...])

    def compute(n: jax.Array, kind: jax.Array) -> None:
        products = tile.dot("kd,qd->kq", nearest_first(keys[n & 1]), query[...])
        effects = tile.dot("kd,qd->kq", nearest_first(values[n & 1]), d_output[...])
        add_gradients(n - 1)
        behind, rest_then = spent[...], rest[...]
        for strip, stored in strips(key_block):
            weights[stored], d_logits[stored], behind, rest_then = tile.gradients(
                products[strip],
                effects[strip],
                bounds[kind, strip],
                behind,
                rest_then,
                bound[...],
                scale,
                weights.dtype,
            )
        spent[...], rest[...] = behind, rest_then

    def step(n: jax.Array, carry: jax.Array) -> jax.Array:
        def fetch_next() -> None:
            fetch_key(n + 1).start()
            fetch_value(n + 1).start()

        pl.when(n + 1 < count)(fetch_next)
        fetch_columns(n).start()
        fetch_key(n).wait()
        fetch_value(n).wait()
        pl.when(n > 0)(lambda: fetch_columns(n - 1).wait())
        compute(n, kind_of_bounds(bounds, inputs, table, entry, stop - n))
        return carry

    def clear_sums() -> None:
        d_key[...] = jnp.zeros_like(d_key)
        d_value[...] = jnp.zeros_like(d_value)
        clear_bounds(bounds)

    def walk_keys() -> None:
        fetch_key(jnp.int32(0)).start()
        fetch_value(jnp.int32(0)).start()
        jax.lax.fori_loop(0, count, step, jnp.int32(0))
        fetch_columns(count - 1).wait()
        add_gradients(count - 1)

    def write_sums() -> None:
        def start(index: jax.Array, carry: jax.Array) -> jax.Array:
            for copy in write(index):
                copy.start()
            return carry

        def wait(index: jax.Array, carry: jax.Array) -> jax.Array:
            for copy in write(index):
                copy.wait()
            return carry

        jax.lax.fori_loop(0, blocks, start, jnp.int32(0))
        jax.lax.fori_loop(0, blocks, wait, jnp.int32(0))

    pl.when(i == 0)(clear_sums)
    sums[...] = jnp.zeros_like(sums)
    spent[...] = jnp.broadcast_to(inputs["spent"][...], spent.shape)
    rest[...] = jnp.broadcast_to(_rest(inputs), rest.shape)
    bound[...] = _bound(inputs)
    # The first iteration adds nothing, of keys that must not be NaN.
    weights[...] = jnp.zeros_like(weights)
    d_logits[...] = jnp.zeros_like(d_logits)
    key_columns[1] = jnp.zeros_like(key_columns[1])
    pl.when(count > 0)(walk_keys)
    d_query[...] = (scale * sums[...]).T.astype(d_query.dtype)
    spent_behind[...] = spent[:1]
    rest_behind[...] = rest[:1]
    pl.when(last_rows)(write_sums)


def _rest(inputs: dict[str, Any]) -> jax.Array:
    """`rest` in front of all keys, float32 `[1, rows]`: over sublanes, in plain additions."""
    rest = inputs["rest"][...]
    output = [
        ref[...].astype(jnp.float32) for name, ref in inputs.items() if name.startswith("output_")
    ]
    if output:
        products = inputs["d_output"][...].astype(jnp.float32) * sum(output[1:], output[0])
        rest += jnp.sum(products.T, axis=0, keepdims=True)
    return rest


def _bound(inputs: dict[str, Any]) -> jax.Array:
    """`largest` of `tile.gradients`, float32 `[8, rows]`."""
    magnitudes = jnp.abs(inputs["d_output"][...])
    ones = jnp.ones((SUBLANES, magnitudes.shape[1]), magnitudes.dtype)
    effects = tile.dot("od,qd->oq", ones, magnitudes) * inputs["largest"][...]
    return jnp.maximum(effects, jnp.abs(inputs["d_remainder"][...]))
