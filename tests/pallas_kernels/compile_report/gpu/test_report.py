from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.gpu import hopper_matmul_mgpu

from pallas_kernels.compile_report.gpu import report as gpu_report
from pallas_kernels.compile_report.program import Program, ProgramReference
from pallas_kernels.compile_report.worker_process import CompileError

PTX = """\
.maxntid 256, 1, 1
setmaxnreg.dec.sync.aligned.u32 40;
wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%r1}, %rd1, %rd2;
wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%r1}, %rd1, %rd2;
wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {%r1}, %rd1, %rd2;
"""
LOG = """\
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized
    16 bytes stack frame, 24 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 90 registers, used 16 barriers, 1 bytes smem
"""
RESOURCES = "Resources(smem_scratch_bytes=65536, tmem_scratch_cols=0)"
SASS = """\
   -:-:-:Y:01        /*0000*/                   LDC R1, c[0x0][0x28]
   -:-:-:Y:01        /*0010*/               @P1 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24
   -:-:-:Y:01        /*0020*/              @!UP0 UTMALDG.2D [UR8], [UR12]
   -:-:-:Y:01        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24
"""


def hopper_matmul() -> Program:
    hopper_matmul_mgpu.get_num_sms = lambda: 132
    config = hopper_matmul_mgpu.TuningConfig(
        tile_m=128, tile_n=128, tile_k=64, max_concurrent_steps=4
    )
    matrix = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16)
    return Program(lambda a, b: hopper_matmul_mgpu.matmul(a, b, None, config), (matrix, matrix))


def broken() -> Program:
    raise ValueError("there is no such kernel")


def test_what_the_assembler_says_is_read() -> None:
    kernel = gpu_report.parse_kernel("k", PTX, LOG, RESOURCES, SASS)
    assert (kernel.threads, kernel.registers, kernel.register_changes) == (256, 90, (40,))
    assert (kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes) == (16, 24, 8)
    assert kernel.shared_bytes == 65537
    assert kernel.wgmma == {"m64n128k16.f32.bf16.bf16": 2, "m64n64k8.f32.tf32.tf32": 1}
    assert kernel.instructions == {"total": 4, "HGMMA": 2, "UTMALDG": 1}
    assert kernel.notes == ("C7511",)
    # 90 registers are given as 96: 24,576 of 65,536 a block; shared memory allows 3 blocks.
    assert (kernel.blocks_per_multiprocessor, kernel.warps_per_multiprocessor) == (2, 16)
    with pytest.raises(ValueError, match="kernel k: no registers"):
        gpu_report.parse_kernel("k", PTX, LOG.replace("Used", "Had"), RESOURCES, SASS)


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (384, 168, 229_377, 1),
        (128, 32, 0, 16),
        (128, 255, 0, 2),
        (32, 16, 0, 32),
        (256, 32, 75_000, 3),
    ],
)
def test_occupancy_is_that_of_the_scarcest_resource(
    threads: int, registers: int, shared: int, blocks: int
) -> None:
    assert gpu_report.occupancy(threads, registers, shared) == blocks


def test_shared_memory_is_that_of_the_kernel_in_the_same_place(tmp_path: Path) -> None:
    for number, size in ((2, 1024), (10, 2048)):
        (tmp_path / f"body_{number}.resources.txt").write_text(f"smem_scratch_bytes={size}")
    for number in (3, 11):
        (tmp_path / f"body_{number}.ptx").touch()
    said = [gpu_report.resources_of(tmp_path / f"body_{number}.ptx") for number in (3, 11)]
    assert said == ["smem_scratch_bytes=1024", "smem_scratch_bytes=2048"]
    (tmp_path / "body_12.ptx").touch()
    with pytest.raises(ValueError, match="is not known, of"):
        gpu_report.resources_of(tmp_path / "body_12.ptx")


def test_reports_of_a_kernel_and_of_a_refusal() -> None:
    programs = [ProgramReference(f"{__file__}:{name}") for name in ("hopper_matmul", "broken")]
    report, refusal = gpu_report.h100_reports(programs)
    assert isinstance(refusal, CompileError)
    assert "there is no such kernel" in str(refusal)
    assert isinstance(report, gpu_report.H100Report)
    [kernel] = report.kernels
    assert kernel.wgmma == {"m64n128k16.f32.bf16.bf16": kernel.instructions["HGMMA"]}
    assert kernel.spill_store_bytes == 0
    assert kernel.blocks_per_multiprocessor == 1
    assert report.output_bytes == 512 * 512 * 2
