"""Reports of what the assembler makes of the kernels for an H100, forward and backward."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention.stickbreaking import stickbreaking_attention
from pallas_kernels.attention.stickbreaking.gpu.block_sizes import SHARED_MEMORY
from pallas_kernels.compile_report import H100Report, Program, ProgramReference, h100_reports


def _program(width: int, length: int = 4096, *, segments: bool = False, **options: Any) -> Program:
    def run(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array) -> Any:
        if segments:
            options.update(query_segment_ids=ids, key_segment_ids=ids)

        def call(*arrays: jax.Array) -> Any:
            return stickbreaking_attention(*arrays, implementation="gpu", **options)

        results, pull = jax.vjp(call, query, key, value)
        return results, pull(results)

    array = jax.ShapeDtypeStruct((1, length, 4, width), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return Program(run, (array, array, array, ids))


def width_128() -> Program:
    """All keys before a query."""
    return _program(128)


def width_128_everything() -> Program:
    """Packed documents, a window and early exit."""
    return _program(128, segments=True, window=1000, tolerance=2**-12)


def width_64() -> Program:
    """Narrow heads."""
    return _program(64)


def length_8192() -> Program:
    """Twice the length of `width_128`."""
    return _program(128, 8192)


def _reports(*names: str) -> list[H100Report]:
    reports = h100_reports([ProgramReference(f"{__file__}:{name}") for name in names])
    assert all(isinstance(report, H100Report) for report in reports), reports
    return [report for report in reports if isinstance(report, H100Report)]


def _check(report: H100Report, kernels: int = 3) -> None:
    assert len(report.kernels) == kernels
    for kernel in report.kernels:
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == kernel.stack_bytes == 0
        assert kernel.notes == ()
        assert kernel.registers == 168  # what three warpgroups can have at launch
        assert kernel.shared_bytes <= SHARED_MEMORY
        assert kernel.instructions["HGMMA"] >= 12
        # Never TF32, which the interpreter would not show.
        assert all(product.endswith("f32.bf16.bf16") for product in kernel.wgmma)


@pytest.mark.verify
def test_kernels_neither_spill_nor_serialise() -> None:
    [report] = _reports("width_128")
    _check(report)


@pytest.mark.verify
def test_variants_neither_spill_nor_serialise() -> None:
    for report in _reports("width_128_everything", "width_64"):
        _check(report)


@pytest.mark.verify
def test_memory_is_linear() -> None:
    short, long = _reports("width_128", "length_8192")
    assert long.temp_bytes <= 2.1 * short.temp_bytes
