"""Operands of the GPU kernels, and the two products on them.

`wgmma` multiplies bfloat16 and float16 with float32 accumulation, and of float32 only the leading
eleven bits (TF32). Float32 operands are therefore split into sums of bfloat16 parts of eight bits
each, and products of parts are added up, small ones first:
- `Precision.HIGHEST`: three parts, the six products above 2^-24 of the whole: float32 accuracy.
- `Precision.HIGH`: two parts, three products: about 2^-16.
- `Precision.DEFAULT`: one part, one product: about 2^-8.
The parts of rows are two bytes a number each, so HIGHEST reads 6 bytes where float32 has 4. An
infinite number has NaN for its second part.

The kernels want widths that are multiples of 64; others are padded, which copies the operand.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.gpu import weight_gradient
from pallas_kernels.grouped_matmul.gpu.block_sizes import (
    CONSUMER_ROWS,
    CONSUMERS,
    row_blocks,
    weight_gradient_blocks,
)
from pallas_kernels.grouped_matmul.gpu.row_reader import interpreted
from pallas_kernels.grouped_matmul.gpu.rows import Epilogue, RowProducts, Term, multiply_rows
from pallas_kernels.grouped_matmul.gpu.tiles import bounded_offsets, position_in_tiles, row_tiles
from pallas_kernels.grouped_matmul.plan import RoutingPlan

WIDTH_MULTIPLE = 64
# Rows that the last tile of an array may reach beyond its end.
PADDING = CONSUMERS * CONSUMER_ROWS
_PARTS = {
    jax.lax.Precision.HIGHEST: 3,
    jax.lax.Precision.HIGH: 2,
    jax.lax.Precision.DEFAULT: 1,
}
_H100_MULTIPROCESSORS = 132

Parts = tuple[Array, ...]


def multiprocessors() -> int:
    """Blocks of the persistent grids: one a multiprocessor of the device in force."""
    if interpreted():
        return 2
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.num_cores:
        return int(abstract.num_cores)
    device = jax.config.jax_default_device
    if not isinstance(device, jax.Device):
        device = jax.devices()[0]
    # A guess for programs that are lowered on a machine without the GPU; it costs only speed.
    return int(getattr(device, "core_count", None) or _H100_MULTIPROCESSORS)


def operand_dtype(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype of the parts in which operands of these dtypes meet."""
    common = jnp.result_type(*dtypes)
    return jnp.dtype(jnp.bfloat16) if common == jnp.float32 else common


@dataclasses.dataclass(frozen=True)
class Operands:
    """The form that operands of a call are prepared in.

    Attributes:
        dtype: of parts, two bytes wide.
        precision: of float32 operands.
    """

    dtype: jnp.dtype
    precision: jax.lax.Precision

    def prepare(self, x: Array) -> Parts:
        """The parts of an array [..., C], padded in its last two axes if it is a bank [E, C, N]."""
        first_axis = 1 if x.ndim == 3 else x.ndim - 1
        padding = [
            (0, -size % WIDTH_MULTIPLE if axis >= first_axis else 0)
            for axis, size in enumerate(x.shape)
        ]
        if any(after for _, after in padding):
            x = jnp.pad(x, padding)
        if x.dtype == self.dtype:
            return (x,)
        rest, parts = x.astype(jnp.float32), []
        for _ in range(_PARTS[self.precision] if x.dtype == jnp.float32 else 1):
            # Not a conversion there and back, which XLA may leave out for more precision.
            part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
            parts.append(part.astype(self.dtype))
            rest = rest - part
        return tuple(parts)

    def pairs(self, a: Parts, b: Parts) -> list[tuple[int, int]]:
        """The pairs of parts that are multiplied, small products first."""
        most = _PARTS[self.precision] - 1
        found = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j <= most]
        return sorted(found, key=lambda pair: -sum(pair))


@dataclasses.dataclass(frozen=True)
class RowOutputs:
    """The outputs that the products of rows are made into.

    Attributes:
        dtype: of the outputs.
        epilogue: float32 sums, one for each bank, to the outputs.
        count: how many outputs there are.
        index: int32 [R], the output's row for each grouped row; None for grouped outputs.
        zero_rest: whether rows without an expert are zeros; otherwise they may hold anything.
        beside: arrays [at least R + PADDING, N] for the epilogue.
        factor: [R] for the epilogue, or None.
        sums: whether the epilogue returns something to be summed up over columns.
        padding: rows of the outputs beyond R, which may hold anything.
    """

    dtype: DTypeLike
    epilogue: Epilogue
    count: int = 1
    index: Array | None = None
    zero_rest: bool = False
    beside: tuple[Array, ...] = ()
    factor: Array | None = None
    sums: bool = False
    padding: int = 0


def _bounded(index: Array | None, rows: int) -> Array | None:
    """An index that is within the rows, whatever a plan holds: kernels follow it unchecked."""
    return None if index is None else jnp.clip(index, 0, rows - 1)


def project(
    plan: RoutingPlan,
    operands: Operands,
    sums: tuple[tuple[Parts, tuple[Parts, ...]], ...],
    outputs: RowOutputs,
    *,
    row_index: Array | None,
    transposed: bool = False,
    bias: Array | None = None,
) -> tuple[tuple[Array, ...], Array | None]:
    """Multiplies rows by their experts' weights.

    Args:
        plan: the routing plan.
        operands: how the operands were prepared.
        sums: products to add up: parts of rows [S, C], and parts of weights [E, C, N] for each
            accumulator.
        outputs: what becomes of the accumulators.
        row_index: int32 [R], the row for each grouped row; None if they are the same.
        transposed: whether weights are [E, N, C].
        bias: [E, n <= N], added to the only accumulator.

    Returns:
        The outputs [R + padding, N], and the sums over columns by grouped row, float32 [R], or
        None.
    """
    rows: Parts = ()
    weights: Parts = ()
    terms: list[Term] = []
    for row_parts, banks in sums:
        of_bank = [len(weights) + sum(map(len, banks[:i])) for i in range(len(banks))]
        for i, j in operands.pairs(row_parts, banks[0]):
            terms.append((len(rows) + i, tuple(first + j for first in of_bank)))
        rows += row_parts
        weights += sum(banks, ())
    columns = weights[0].shape[1 if transposed else 2]
    blocks = row_blocks(
        columns,
        operands.dtype.itemsize,
        jnp.dtype(outputs.dtype).itemsize,
        banks=len(sums[0][1]),
        outputs=outputs.count,
        beside=len(outputs.beside),
    )
    settings = RowProducts(
        blocks=blocks,
        num_rows=plan.num_slots,
        terms=tuple(terms),
        transposed=transposed,
        outputs=outputs.count,
        output_dtype=outputs.dtype,
        epilogue=outputs.epilogue,
        multiprocessors=multiprocessors(),
        zero_rest=outputs.zero_rest,
        sums=outputs.sums,
        padding=outputs.padding,
    )
    if bias is not None:
        whole = -(-columns // blocks.columns) * blocks.columns
        bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (0, whole - bias.shape[1])))
    tiles = row_tiles(plan.group_offsets, plan.num_slots, blocks.rows, rest=outputs.zero_rest)
    factor = outputs.factor
    if factor is not None:
        factor = jnp.pad(factor.astype(jnp.float32), (0, PADDING))
    results, of_tiles = multiply_rows(
        settings,
        rows,
        weights,
        tiles,
        row_index=_bounded(row_index, rows[0].shape[0]),
        bias=bias,
        output_index=_bounded(outputs.index, plan.num_slots),
        beside=outputs.beside,
        factor=factor,
    )
    if of_tiles is None:
        return results, None
    position = position_in_tiles(plan.group_offsets, plan.expert_of_row, blocks.rows)
    return results, jnp.sum(of_tiles, axis=1).reshape(-1)[position]


def sum_products(
    plan: RoutingPlan,
    operands: Operands,
    left: Parts,
    right: Parts,
    dtype: DTypeLike,
    *,
    left_index: Array | None,
    right_index: Array | None,
    scale: Array | None = None,
) -> Array:
    """Sums left.T @ right over the rows of each expert, [E, D, F].

    Args:
        plan: the routing plan.
        operands: how the operands were prepared.
        left: parts [S, D].
        right: parts [U, F].
        dtype: of the result.
        left_index: int32 [R], the left row for each grouped row; None if they are the same.
        right_index: the same for the right rows.
        scale: [R], factors of the left rows; only for operands of one part.
    """
    blocks = weight_gradient_blocks(
        right[0].shape[1], operands.dtype.itemsize, jnp.dtype(dtype).itemsize
    )
    settings = weight_gradient.WeightGradients(
        blocks, tuple(operands.pairs(left, right)), dtype, multiprocessors()
    )
    if scale is not None:
        scale = jnp.pad(scale.astype(jnp.float32), (0, PADDING))
    return weight_gradient.sum_products(
        settings,
        left,
        right,
        bounded_offsets(plan.group_offsets, plan.num_slots),
        left_index=_bounded(left_index, left[0].shape[0]),
        right_index=_bounded(right_index, right[0].shape[0]),
        scale=scale,
    )
