"""Bytes counted by hand beside bytes counted by the program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.megablox import gmm

from pallas_kernels.compile_report.hlo import HloProgram
from pallas_kernels.compile_report.traffic import (
    KernelTraffic,
    kernel_traffic,
    program_traffic,
)

Shape = jax.ShapeDtypeStruct
BF16, F32 = jnp.bfloat16, jnp.float32


def only(kernels: list[KernelTraffic]) -> KernelTraffic:
    [kernel] = kernels
    return kernel


def matmul_kernel(x_ref, w_ref, o_ref):
    o_ref[...] += jnp.dot(x_ref[...], w_ref[...], preferred_element_type=F32)


def matmul(x, w, *, bm=128, bn=256, bk=128):
    (m, k), n = x.shape, w.shape[1]
    return pl.pallas_call(
        matmul_kernel,
        grid=(m // bm, n // bn, k // bk),
        in_specs=[
            pl.BlockSpec((bm, bk), lambda i, j, k: (i, k)),
            pl.BlockSpec((bk, bn), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
        out_shape=Shape((m, n), F32),
        name="matmul",
    )(x, w)


def test_blocks_are_fetched_when_they_change() -> None:
    kernel = only(kernel_traffic(matmul, Shape((256, 512), BF16), Shape((512, 512), BF16)))
    assert kernel.grid == (2, 2, 4)
    # Every step has another block of both operands; a result stays for the 4 steps of its sum.
    assert kernel.read == (16 * 128 * 128 * 2, 16 * 128 * 256 * 2, 0)
    assert kernel.written == (0, 0, 4 * 128 * 256 * 4)
    assert kernel.copies == 16 + 16 + 4
    assert kernel.product_runs == (16,)
    assert kernel.flops == 2 * 256 * 512 * 512
    assert kernel.signature == ("f32[256,512]",)
    assert kernel.exact


def test_a_block_that_stays_is_fetched_once() -> None:
    operands = Shape((512, 128), BF16), Shape((128, 256), BF16)
    kernel = only(kernel_traffic(matmul, *operands))
    assert kernel.read == (512 * 128 * 2, 128 * 256 * 2, 0)


def test_blocks_of_scalars_count_like_others() -> None:
    def take(index_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...] + index_ref[0, 0]

    def run(index, x):
        tile = pl.BlockSpec((8, 128), lambda j, i: (i, 0))
        scalars = pl.BlockSpec((None, 1, 16), lambda j, i: (i, 0, 0), memory_space=pltpu.SMEM)
        return pl.pallas_call(
            take,
            grid=(3, 4),
            in_specs=[scalars, tile],
            out_specs=tile,
            out_shape=Shape((32, 128), F32),
        )(index, x)

    kernel = only(kernel_traffic(run, np.zeros((4, 1, 16), np.int32), Shape((32, 128), F32)))
    assert kernel.read[:2] == (12 * 16 * 4, 12 * 8 * 128 * 4), "once a step"
    assert kernel.copies == 3 * 12


def test_blocks_over_the_edge_move_what_is_inside() -> None:
    def copy(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    def run(x):
        spec = pl.BlockSpec((128, 128), lambda i: (i, 0))
        return pl.pallas_call(
            copy, grid=(2,), in_specs=[spec], out_specs=spec, out_shape=Shape((200, 128), F32)
        )(x)

    kernel = only(kernel_traffic(run, Shape((200, 128), F32)))
    assert kernel.read[0] == kernel.written[1] == 200 * 128 * 4


@pytest.mark.parametrize(("sizes", "fetches"), [((128, 384, 0), 2), ((200, 200, 112), 5)])
def test_block_maps_read_tables_that_the_program_computes(sizes, fetches: int) -> None:
    x, w = Shape((512, 128), BF16), Shape((3, 128, 128), BF16)
    run = functools.partial(gmm, tiling=(128, 128, 128))
    kernel = only(kernel_traffic(run, x, w, np.array(sizes, np.int32)))
    # A tile of rows that holds the end of a group and the start of another runs once for each.
    steps = 4 if fetches == 2 else 6
    assert kernel.grid == (1, steps, 1)
    weights = kernel.read[-2]
    assert weights == {2: 2, 5: 3}[fetches] * 128 * 128 * 2
    assert kernel.read[-3] == 512 * 128 * 2
    assert kernel.product_runs[-1] + kernel.product_runs[0] == steps


def gather_kernel(index_ref, x_ref, o_ref, buffer, semaphore, *, rows, skip):
    def copy(j):
        row = index_ref[pl.program_id(0) * rows + j]
        return pltpu.make_async_copy(x_ref.at[row], buffer.at[j], semaphore)

    @pl.loop(0, rows)
    def _(j):
        @pl.when(index_ref[pl.program_id(0) * rows + j] >= skip)
        def _():
            copy(j).start()

    @pl.when(pl.program_id(0) == 1)
    def _():
        copy(0).start()

    o_ref[...] = buffer[...].reshape(o_ref.shape)


def gather(x, indices, *, rows=8, skip=0):
    steps = indices.shape[0] // rows
    return pl.pallas_call(
        functools.partial(gather_kernel, rows=rows, skip=skip),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(steps,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=pl.BlockSpec((rows, 128), lambda i, index: (i, 0)),
            scratch_shapes=[pltpu.VMEM((rows, 1, 128), F32), pltpu.SemaphoreType.DMA],
        ),
        out_shape=Shape((indices.shape[0], 128), F32),
    )(indices, x)


def test_copies_of_the_kernel_count_where_their_predicates_hold() -> None:
    indices = np.arange(32, dtype=np.int32)
    x = Shape((64, 1, 128), F32)
    kernel = only(kernel_traffic(functools.partial(gather, skip=4), x, indices))
    # Rows 0 to 3 are skipped; one row is copied again in step 1.
    assert kernel.read == (32 * 4, (28 + 1) * 128 * 4, 0)
    assert kernel.written == (0, 0, 32 * 128 * 4)
    assert kernel.copies == 28 + 1 + 4
    assert kernel.exact


def test_loops_whose_steps_are_alike_count_for_all() -> None:
    def kernel(n_ref, x_ref, o_ref, buffer, semaphore):
        def step(j, carry):
            pltpu.make_async_copy(x_ref.at[j], buffer, semaphore).start()
            return carry

        jax.lax.fori_loop(0, n_ref[pl.program_id(0)], step, 0)
        jax.lax.fori_loop(0, 3, step, 0)
        jax.lax.fori_loop(0, 2, step, 0, unroll=True)
        o_ref[...] = buffer[...]

    def run(lengths, x):
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(2,),
                in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
                out_specs=pl.BlockSpec((8, 128), lambda i, n: (0, 0)),
                scratch_shapes=[pltpu.VMEM((8, 128), F32), pltpu.SemaphoreType.DMA],
            ),
            out_shape=Shape((8, 128), F32),
        )(lengths, x)

    lengths = np.array([5, 7], np.int32)
    found = only(kernel_traffic(run, lengths, Shape((16, 8, 128), F32)))
    copies = 5 + 7 + 2 * 3 + 2 * 2
    assert found.read[1] == copies * 8 * 128 * 4
    assert found.loop_runs == (5 + 7, 2 * 3)
    assert found.exact
    unknown = only(kernel_traffic(run, Shape((2,), jnp.int32), Shape((16, 8, 128), F32)))
    assert not unknown.exact


def test_branches_that_only_store_are_counted() -> None:
    def kernel(n_ref, x_ref, o_ref, sums):
        i = pl.program_id(1)

        @pl.when(i == 0)
        def _():
            sums[...] = jnp.zeros_like(sums)

        @pl.when(i < n_ref[pl.program_id(0)])
        def _():
            sums[...] += jnp.dot(x_ref[...], x_ref[...], preferred_element_type=F32)

        @pl.when(i == n_ref[pl.program_id(0)] - 1)
        def _():
            o_ref[...] = sums[...]

    def run(lengths, x):
        return pl.pallas_call(
            kernel,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(3, 4),
                in_specs=[pl.BlockSpec((128, 128), lambda i, j, n: (0, 0))],
                out_specs=pl.BlockSpec((128, 128), lambda i, j, n: (i, 0)),
                scratch_shapes=[pltpu.VMEM((128, 128), F32)],
            ),
            out_shape=Shape((3 * 128, 128), F32),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        )(lengths, x)

    lengths = np.array([4, 0, 2], np.int32)
    found = only(kernel_traffic(run, lengths, Shape((128, 128), BF16)))
    assert found.store_runs == (3, 2)
    assert found.product_runs == (6,)
    assert found.exact
    assert not only(kernel_traffic(run, Shape((3,), jnp.int32), Shape((128, 128), BF16))).exact
    # Two cores cannot share three steps evenly.
    assert found.share(1) == 1
    assert found.share(2) == 2 / 3


def test_unknown_block_maps_are_refused() -> None:
    run = functools.partial(gmm, tiling=(128, 128, 128))
    operands = Shape((512, 128), BF16), Shape((3, 128, 128), BF16), Shape((3,), jnp.int32)
    with pytest.raises(ValueError, match="not known"):
        kernel_traffic(run, *operands)


def test_kernels_inside_gradients_are_found_in_order() -> None:
    def loss(x, w, sizes):
        return gmm(x, w, sizes, tiling=(128, 128, 128)).sum()

    sizes = np.array([128, 384], np.int32)
    operands = Shape((512, 128), F32), Shape((2, 128, 256), F32), sizes
    kernels = kernel_traffic(jax.grad(loss, argnums=(0, 1)), *operands)
    assert [kernel.signature for kernel in kernels][-2:] == [
        ("f32[512,128]",),
        ("f32[2,128,256]",),
    ]


def test_kernels_of_equal_results_are_told_apart_by_name() -> None:
    def run(name: str, operands: int):
        def kernel(*refs):
            refs[-1][...] = refs[0][...]

        def call(x):
            spec = pl.BlockSpec((8, 128), lambda i: (i, 0))
            return pl.pallas_call(
                kernel,
                grid=(2,),
                in_specs=[spec] * operands,
                out_specs=spec,
                out_shape=Shape((16, 128), F32),
                name=name,
            )(*[x] * operands)

        return call

    def function(x):
        return run("sum", 3)(x), run("sum_row", 1)(x)

    # Gradients put words around a name, the compiler behind it, and it runs them as it likes.
    text = """\
HloModule m

ENTRY %main (x: f32[16,128]) -> f32[16,128] {
  %x = f32[16,128]{1,0:T(8,128)} parameter(0)
  %jvp_sum_row__.1.refs = f32[16,128]{1,0:T(8,128)} custom-call(%x),
    custom_call_target="tpu_custom_call"
  ROOT %jvp_sum__.2 = f32[16,128]{1,0:T(8,128)} custom-call(%x, %x, %jvp_sum_row__.1.refs),
    custom_call_target="tpu_custom_call"
}
"""
    found = program_traffic(HloProgram(text), kernel_traffic(function, Shape((16, 128), F32)))
    size = 16 * 128 * 4
    assert [(name, kernel.name, moved) for name, kernel, moved, _ in found.kernels] == [
        ("jvp_sum_row__.1.refs", "sum_row", 2 * size),
        ("jvp_sum__.2", "sum", 4 * size),
    ]


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        # Once more than it was traced: the compiler computes again.
        (["rows.1", "rows.1.remat", "gradient.2"], ["rows", "rows", "gradient"]),
        # What bears no name is what nothing else bears the name of.
        (["call.1", "rows.2"], ["gradient", "rows"]),
        (["call.1", "call.2"], ["rows", "gradient"]),
    ],
)
def test_a_name_counts_more_than_what_is_left(instructions, expected) -> None:
    def known(name: str, size: int) -> KernelTraffic:
        moved = (size,)
        return KernelTraffic(
            name, ("f32[16,128]",), (1,), 1, moved, moved, 0, (), (), (), 0, exact=True
        )

    calls = "".join(
        f"""
  {"ROOT " * (name == instructions[-1])}%{name} = f32[16,128]{{1,0:T(8,128)}} custom-call(),
    custom_call_target="tpu_custom_call\""""
        for name in instructions
    )
    text = f"HloModule m\n\nENTRY %main () -> f32[16,128] {{{calls}\n}}\n"
    kernels = [known("rows", 10), known("gradient", 1000)]
    found = program_traffic(HloProgram(text), kernels)
    assert [kernel.name for _, kernel, _, _ in found.kernels] == expected
    with pytest.raises(ValueError, match="is unknown"):
        program_traffic(HloProgram(text.replace("f32[16", "f32[24")), kernels)
