"""The register code of `registers`, in the intermediate language of Mosaic GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.experimental.mosaic.gpu as mgpu
import numpy as np
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, math, vector


def break_sticks(logits: Any, stick: Any, dtype: Any) -> tuple[Any, Any]:
    """`registers.break_sticks` on fragmented arrays."""
    tile = _pairs(logits)
    weights = np.empty(tile.shape, dtype=object)
    sticks = _rows(stick)
    for half in range(2):
        share, keep = _shares(tile[:, half])
        front, total = _across_lanes(_tree(arith.mulf, keep), arith.mulf, 1.0)
        weights[:, half], _ = _weights(share, keep, arith.mulf(sticks[half], front))
        sticks[half] = arith.mulf(sticks[half], total)
    return _array(logits, weights, dtype), _like(stick, sticks)


def d_logits(
    logits: Any, d_weights: Any, stick: Any, rest: Any, bound: Any, dtype: Any
) -> tuple[Any, Any, Any, Any]:
    """`registers.d_logits` on fragmented arrays."""
    tile, products = _pairs(logits), _pairs(d_weights)
    weights = np.empty(tile.shape, dtype=object)
    gradients = np.empty(tile.shape, dtype=object)
    sticks, rests, bounds = _rows(stick), _rows(rest), _rows(bound)
    narrow = utils.dtype_to_ir_type(dtype)
    for half in range(2):
        share, keep = _shares(tile[:, half])
        front, total = _across_lanes(_tree(arith.mulf, keep), arith.mulf, 1.0)
        left = arith.mulf(sticks[half], front)
        weights[:, half], _ = _weights(share, keep, left)
        parts: list[ir.Value] = []
        for n in range(len(tile)):
            weights[n, half] = arith.truncf(_vector_type(narrow, 2), weights[n, half])
            exact = arith.extf(products[n, half].type, weights[n, half])
            parts += _elements(arith.mulf(exact, products[n, half]))
        nearer, taken = _across_lanes(_tree(arith.addf, parts), arith.addf, 0.0)
        limit = arith.mulf(bounds[half], left)
        remains = arith.subf(rests[half], nearer)
        remains = arith.minimumf(arith.maximumf(remains, arith.negf(limit)), limit)
        for n in reversed(range(len(tile))):
            pair: list[ir.Value] = []
            for index in (2 * n + 1, 2 * n):
                passed_on = arith.negf(share[index])
                pair.insert(0, math.fma(passed_on, remains, parts[index]))
                remains = arith.subf(remains, parts[index])
            gradients[n, half] = _vector(pair)
        sticks[half] = arith.mulf(sticks[half], total)
        rests[half] = arith.subf(rests[half], taken)
    narrow_weights = mgpu.FragmentedArray(
        _registers=weights.reshape(logits.registers.shape), _layout=logits.layout, _is_signed=None
    )
    return (
        narrow_weights,
        _array(logits, gradients, dtype),
        _like(stick, sticks),
        _like(rest, rests),
    )


def _shares(registers: np.ndarray) -> tuple[list[ir.Value], list[ir.Value]]:
    """Returns the shares of the stick that each key of a run takes and leaves."""
    share: list[ir.Value] = []
    keep: list[ir.Value] = []
    for register in registers:
        for logit in _elements(register):
            odds = _instruction("ex2.approx.ftz.f32", logit)
            kept = _instruction("rcp.approx.ftz.f32", arith.addf(odds, _constant(1.0)))
            keep.append(kept)
            share.append(arith.mulf(odds, kept))
    return share, keep


def _weights(
    share: list[ir.Value], keep: list[ir.Value], left: ir.Value
) -> tuple[list[ir.Value], ir.Value]:
    """Pairs of weights of a run of keys, and the stick that it leaves."""
    pairs: list[ir.Value] = []
    for n in reversed(range(0, len(share), 2)):
        nearer = arith.mulf(share[n + 1], left)
        left = arith.mulf(left, keep[n + 1])
        farther = arith.mulf(share[n], left)
        left = arith.mulf(left, keep[n])
        pairs.insert(0, _vector([farther, nearer]))
    return pairs, left


def _array(like: Any, registers: np.ndarray, dtype: Any) -> Any:
    return mgpu.FragmentedArray(
        _registers=registers.reshape(like.registers.shape), _layout=like.layout, _is_signed=None
    ).astype(utils.dtype_to_ir_type(dtype))


def _pairs(tile: Any) -> np.ndarray:
    """Registers `[K / 8, 2]` of a tile: pairs of columns, of the row of a thread and the other."""
    return tile.registers.reshape(-1, 2)


def _rows(array: Any) -> list[ir.Value]:
    return [_elements(register)[0] for register in array.registers.flat]


def _like(array: Any, values: list[ir.Value]) -> Any:
    registers = np.empty(len(values), dtype=object)
    for n, value in enumerate(values):
        is_vector = isinstance(array.registers.flat[n].type, ir.VectorType)
        registers[n] = _vector([value]) if is_vector else value
    return mgpu.FragmentedArray(
        _registers=registers.reshape(array.registers.shape), _layout=array.layout, _is_signed=None
    )


def _elements(register: ir.Value) -> list[ir.Value]:
    if not isinstance(register.type, ir.VectorType):
        return [register]
    [size] = ir.VectorType(register.type).shape
    return [
        vector.extract(register, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([n]))
        for n in range(size)
    ]


def _vector(elements: list[ir.Value]) -> ir.Value:
    result = llvm.mlir_undef(ir.VectorType.get((len(elements),), elements[0].type))
    for n, element in enumerate(elements):
        result = vector.insert(
            element,
            result,
            dynamic_position=[],
            static_position=ir.DenseI64ArrayAttr.get([n]),
        )
    return result


def _constant(value: float) -> ir.Value:
    return utils.c(value, ir.F32Type.get())


def _instruction(name: str, argument: ir.Value) -> ir.Value:
    return llvm.inline_asm(ir.F32Type.get(), [argument], f"{name} $0, $1;", "=f,f")


def _vector_type(element: ir.Type, size: int) -> ir.Type:
    return ir.VectorType.get((size,), element)


def _tree(combine: Callable[..., ir.Value], values: list[ir.Value]) -> ir.Value:
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [combine(one, other) for one, other in pairs]
    return values[0]


def _across_lanes(
    own: ir.Value, combine: Callable[..., ir.Value], neutral: float
) -> tuple[ir.Value, ir.Value]:
    """Combines what the lanes of nearer keys of a row hold, and what all four hold."""
    i32 = ir.IntegerType.get_signless(32)
    lane = arith.andi(utils.thread_idx(), utils.c(3, i32))
    nothing = _constant(neutral)
    neighbour = utils.shfl_bfly(own, 1)
    pair = combine(own, neighbour)
    other = utils.shfl_bfly(pair, 2)
    even = arith.cmpi(arith.CmpIPredicate.eq, arith.andi(lane, utils.c(1, i32)), utils.c(0, i32))
    low = arith.cmpi(arith.CmpIPredicate.ult, lane, utils.c(2, i32))
    nearer = combine(arith.select(even, neighbour, nothing), arith.select(low, other, nothing))
    return nearer, combine(pair, other)
