from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.compile_report import chips
from pallas_kernels.compile_report.program import Program, ProgramReference
from pallas_kernels.compile_report.tpu.report import TpuReport, executed_bundles, tpu_reports
from pallas_kernels.compile_report.tpu.schedule import Region, Schedule
from pallas_kernels.compile_report.traffic import KernelTraffic
from pallas_kernels.compile_report.worker_process import CompileError
from tests.contracts.sweep import sweep

THIS = f"{__file__}:"


def matmul_kernel(x_ref, w_ref, o_ref):
    @pl.when(pl.program_id(1) == 0)
    def _():
        o_ref[...] = jnp.zeros_like(o_ref)

    o_ref[...] += jnp.dot(x_ref[...], w_ref[...], preferred_element_type=jnp.float32)


def matmul(size: int) -> Program:
    """A product in blocks of 256 rows and 512 summands."""

    def run(x, w):
        return pl.pallas_call(
            matmul_kernel,
            grid=(size // 256, size // 512),
            in_specs=[
                pl.BlockSpec((256, 512), lambda i, k: (i, k)),
                pl.BlockSpec((512, 512), lambda i, k: (k, 0)),
            ],
            out_specs=pl.BlockSpec((256, 512), lambda i, k: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((size, 512), jnp.float32),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            name="product",
        )(x, w)

    shapes = (size, size), (size, 512)
    return Program(run, tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))


def refused() -> Program:
    """Its scratch does not fit into VMEM."""

    def fill(o_ref, scratch_ref):
        scratch_ref[0] = jnp.ones_like(o_ref)
        o_ref[...] = scratch_ref[0]

    tile = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    scratch = [pltpu.VMEM((1 << 16, 8, 128), jnp.float32)]
    return Program(pl.pallas_call(fill, out_shape=tile, scratch_shapes=scratch), ())


@sweep("generation", ["v5p", "v6e"], ["v5p"])
def test_report_of_a_product(generation: str) -> None:
    done: list[int] = []
    programs = [
        ProgramReference(THIS + "matmul", {"size": 2048}),
        ProgramReference(THIS + "refused"),
    ]
    report, refusal = tpu_reports(generation, programs, on_done=lambda: done.append(1))
    assert len(done) == 2
    assert isinstance(refusal, CompileError)
    assert "vmem" in str(refusal).lower()
    assert isinstance(report, TpuReport)
    [kernel] = report.kernels
    assert kernel.name.startswith("product")
    assert kernel.grid == (8, 4)
    moved = 2048 * 2048 * 2 + 8 * 2048 * 512 * 2 + 2048 * 512 * 4
    assert kernel.hbm_bytes == moved
    assert report.hbm_bytes == moved == report.bytes_by_category["kernel"]
    assert kernel.flops == 2 * 2048 * 2048 * 512
    assert kernel.matmul_runs == (32,)
    assert 0.3 < kernel.matmul_use <= 1
    assert 0 < kernel.loop_bundles < kernel.bundles
    # Two blocks of each operand and of the result.
    assert kernel.vmem_bytes >= 2 * (256 * 512 * 2 + 512 * 512 * 2 + 256 * 512 * 4)
    chip = chips.find_chip(generation)
    assert kernel.predicted_seconds >= kernel.flops / chip.matmul_flops
    assert kernel.seconds["bytes"] == pytest.approx(moved / chip.hbm_bandwidth)
    steps = kernel.seconds["bundles"] * chip.clock * chip.cores
    assert 32 * max(kernel.matmul_bundles) <= steps <= 32 * kernel.bundles
    assert kernel.exact


def test_an_unknown_generation_is_named() -> None:
    with pytest.raises(ValueError, match="generation='v1' is unknown; known are v5e"):
        tpu_reports("v1", [])


def nested_kernel(
    loop_runs: tuple[int, ...], product_runs: tuple[int, ...], store_runs: tuple[int, ...] = ()
) -> KernelTraffic:
    return KernelTraffic(
        name="k",
        signature=(),
        grid=(10,),
        parallel_steps=1,
        read=(),
        written=(),
        copies=0,
        product_runs=product_runs,
        loop_runs=loop_runs,
        store_runs=store_runs,
        flops=0,
        exact=True,
    )


def test_bundles_that_run_follow_loops_and_branches() -> None:
    def region(kind: str, start: int, end: int, mxu: int, *children: Region) -> Region:
        return Region(kind, start, end, end - start, {"MXU": mxu, "VSTORE": 0}, 0, children)

    # A grid of 10 steps; a branch is taken in 6 of them; in it a loop runs 7 times each.
    inner = region("loop", 20, 50, 60)
    branch = region("branch", 10, 60, 80, inner)
    start_of_block = region("branch", 70, 80, 0)
    kernel = region("kernel", 0, 100, 80, region("loop", 5, 95, 80, branch, start_of_block))
    schedule = Schedule("k", {"MXU": 4}, kernel, 0)
    bundles, exact = executed_bundles(schedule, nested_kernel((42,), (6, 42)))
    assert bundles == 10 + 10 * (90 - 50 - 10) + 6 * (50 - 30) + 42 * 30
    assert exact
    # Without a word on the branch it is taken to run in every step.
    bundles, _ = executed_bundles(schedule, nested_kernel((42,), (42,)))
    assert bundles == 10 + 10 * (90 - 50 - 10) + 10 * (50 - 30) + 42 * 30
    _, exact = executed_bundles(schedule, nested_kernel((42, 42), (6, 42)))
    assert not exact


def test_branches_that_only_store_count_as_often_as_they_run() -> None:
    def region(kind: str, start: int, end: int, *children: Region, **slots: int) -> Region:
        use = {"MXU": 0, "VSTORE": 0} | slots
        return Region(kind, start, end, end - start, use, 0, children)

    # A grid of 10 steps: sums are cleared in some and written in some, and a mask, whose rows a
    # loop fills, is there in some.
    cleared = region("branch", 10, 20, VSTORE=10)
    mask = region("branch", 20, 30, region("loop", 22, 28, VSTORE=6), VSTORE=6)
    wait = region("branch", 30, 34)
    written = region("branch", 80, 90, VSTORE=10)
    grid = region("loop", 5, 95, cleared, mask, wait, written, MXU=80, VSTORE=26)
    schedule = Schedule("k", {"MXU": 4}, region("kernel", 0, 100, grid, MXU=80, VSTORE=26), 0)
    always = 10 + 10 * (90 - 10 - 10 - 4 - 10)
    bundles, exact = executed_bundles(schedule, nested_kernel((12,), (10,), (3, 5)))
    assert bundles == always + 12 * 6 + 3 * 10 + 5 * 10
    assert exact
    # Three branches, of which the compiler made two: it matters not where all run as often.
    bundles, exact = executed_bundles(schedule, nested_kernel((12,), (10,), (3, 3, 3)))
    assert bundles == always + 12 * 6 + 2 * 3 * 10
    assert exact
    bundles, exact = executed_bundles(schedule, nested_kernel((12,), (10,), (3, 5, 5)))
    assert bundles == always + 12 * 6
    assert not exact
