"""The register code of `gpu_registers`, in the intermediate language of Mosaic GPU."""

from __future__ import annotations

from typing import Any

import jax.experimental.mosaic.gpu as mgpu
import numpy as np
from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector


def break_sticks(logits: Any, stick: Any, dtype: Any) -> tuple[Any, Any]:
    """`gpu_registers.break_sticks` on fragmented arrays."""
    columns, sticks = _columns(logits), _rows(stick)
    registers = np.empty((len(columns), 2), dtype=object)
    lane = _lane()
    for half in range(2):
        keep: list[ir.Value] = []
        share: list[ir.Value] = []
        for register in columns[:, half]:
            for logit in _elements(register):
                odds = _instruction("ex2.approx.ftz.f32", logit)
                kept = _instruction("rcp.approx.ftz.f32", arith.addf(odds, _constant(1.0)))
                keep.append(kept)
                share.append(arith.mulf(odds, kept))
        front, total = _across_lanes(_product(keep), lane)
        left = arith.mulf(sticks[half], front)
        sticks[half] = arith.mulf(sticks[half], total)
        for n in reversed(range(len(columns))):
            farther, nearer = 2 * n, 2 * n + 1
            second = arith.mulf(share[nearer], left)
            left = arith.mulf(left, keep[nearer])
            first = arith.mulf(share[farther], left)
            left = arith.mulf(left, keep[farther])
            registers[n, half] = _vector([first, second])
    tile = mgpu.FragmentedArray(
        _registers=registers.reshape(logits.registers.shape),
        _layout=logits.layout,
        _is_signed=None,
    ).astype(utils.dtype_to_ir_type(dtype))
    return tile, _like(stick, sticks)


def _columns(tile: Any) -> np.ndarray:
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


def _product(values: list[ir.Value]) -> ir.Value:
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [arith.mulf(one, other) for one, other in pairs]
    return values[0]


def _lane() -> ir.Value:
    """Which of the four lanes that share a row this is."""
    i32 = ir.IntegerType.get_signless(32)
    return arith.andi(utils.thread_idx(), utils.c(3, i32))


def _across_lanes(own: ir.Value, lane: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Products of what the lanes of nearer keys hold, and of what all four hold."""
    i32 = ir.IntegerType.get_signless(32)
    one = _constant(1.0)
    neighbour = utils.shfl_bfly(own, 1)
    pair = arith.mulf(own, neighbour)
    other = utils.shfl_bfly(pair, 2)
    even = arith.cmpi(arith.CmpIPredicate.eq, arith.andi(lane, utils.c(1, i32)), utils.c(0, i32))
    low = arith.cmpi(arith.CmpIPredicate.ult, lane, utils.c(2, i32))
    front = arith.mulf(arith.select(even, neighbour, one), arith.select(low, other, one))
    return front, arith.mulf(pair, other)
