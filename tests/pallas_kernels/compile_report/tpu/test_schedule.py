from __future__ import annotations

from pathlib import Path

import pytest

from pallas_kernels.compile_report.tpu import schedule

UNITS = "MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU"
CAPACITY = "4 3 4 2 1 3 3 1 1 2"

# Bundles 2 to 9 are a loop; 4 and 5 are skipped by a branch and start a block; 6 and 7 multiply.
BUNDLES = """\
= control target key start
LH: loop header
= control target key end

     0   :  { %s1 = smov 0 }
   0x1   :  { %s2 = smov 0 } /* Start region 1 */
   0x2 LB: > { %s3 = sadd.s32 1, %s2 } /* Start region 9 :: Start region 2 */
   0x3   : > { %5 = sbr.rel (%p1) target = $region4 } /* End region 2 */
   0x4   : > { %6 = vst [vmem:[#allocation2] sm:$0xff] %v1 } /* Start region 3 */
   0x5   : > { %7 = vst [vmem:[#allocation2] sm:$0xff] %v1 } /* End region 3 */
   0x6 PF: > { %8 = vmatmul.bf16.gmra.mxu0 %v1 } /* Start/End empty region 4 */
   0x7   : > { %9 = vmatmul.bf16.gmra.mxu1 %v1 /* a comment
over two lines */ } /* Start region 10 */
   0x8   : > { %10 = dma.vmem_to_hbm %s1 } /* End region 9 */
   0x9   : > { %11 = sbr.rel (!%p2) target = $region9 }
   0xa   :  { %12 = dma.done.wait %s1 }
"""


def rows(mxu: list[int], spill: list[int]) -> str:
    lines = [f"{m} 0 0 0 0 0 {s} 0 {s} 1" for m, s in zip(mxu, spill, strict=True)]
    return "\n".join(["== CAPACTIY:", UNITS, CAPACITY, "== UTILIZATION:", *lines]) + "\n"


USE = rows([0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0])


def parsed(branch_delay: int = 0) -> schedule.Schedule:
    return schedule.parse_schedule("k", BUNDLES, USE, branch_delay)


def test_loops_and_skipped_parts_are_found_by_their_branches() -> None:
    kernel = parsed().kernel
    [loop] = kernel.children
    [skipped] = loop.children
    assert (kernel.bundles, loop.kind, loop.start, loop.end) == (11, "loop", 2, 10)
    assert (skipped.kind, skipped.start, skipped.end) == ("branch", 4, 6)
    assert loop.copies == 1  # waiting for a copy starts none


def test_steady_leaves_out_what_starts_and_finishes_blocks() -> None:
    one = parsed()
    assert one.inner_loop.steady[0] == 6
    assert one.use(one.inner_loop, "MXU") == 8 / (6 * 4)
    assert one.use(one.inner_loop, "MXU", steady=False) == 8 / (8 * 4)


def test_a_skipped_part_that_multiplies_or_copies_counts() -> None:
    multiplies = rows([0, 0, 0, 0, 4, 4, 0, 0, 0, 0, 0], [0] * 11)
    one = schedule.parse_schedule("k", BUNDLES, multiplies, 0)
    assert one.inner_loop.steady[0] == 8
    [part] = one.matmul_regions
    assert (part.start, part.end) == (4, 6)
    copies = BUNDLES.replace("%7 = vst", "%7 = dma.hbm_to_vmem")
    assert schedule.parse_schedule("k", copies, USE, 0).inner_loop.steady[0] == 8


def test_bundles_after_a_branch_still_run() -> None:
    [loop] = parsed(branch_delay=1).kernel.children
    assert loop.end == 11
    assert loop.children[0].start == 5


def test_spills_are_counted() -> None:
    assert parsed().kernel.slots["VSTORE:SPILL"] == 1


def test_texts_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="known form"):
        schedule.parse_schedule("k", BUNDLES, "nothing\n", 0)
    with pytest.raises(ValueError, match="11 bundles, and slot use of 2"):
        schedule.parse_schedule("k", BUNDLES, rows([0, 0], [0, 0]), 0)


def test_files_of_a_folder_belong_together_by_their_prefix(tmp_path: Path) -> None:
    for name in ("k", "k.1"):
        (tmp_path / f"17-{name}-03-final_bundles.txt").write_text(BUNDLES)
        (tmp_path / f"17-{name}-02-schedule-analysis_final_bundles.txt").write_text("")
        use = tmp_path / f"17-{name}-01-final_hlo-static-per-bundle-utilization.txt"
        use.write_text(USE)
        allocations = tmp_path / f"17-{name}-00-pre-finalize-registers-and-allocations.txt"
        allocations.write_text(
            "  #allocation3 [shape = 'f32[8,128]', space=vmem, size = 0x1000, scoped]\n"
            "  #allocation4 [shape = 'u32[]', space=smem, size = 0x4, scoped]\n"
            "    #allocation5 [shape = 'u8[16]', space=vmem, size = 0x10, scoped]\n"
        )
    found = schedule.read_schedules(tmp_path, 0)
    assert set(found) == {"k", "k.1"}
    assert found["k"].vmem == 0x1010


def test_parts_that_multiply_are_counted_without_what_is_inside() -> None:
    # The loop multiplies, and so does what a branch in it skips.
    use = rows([0, 0, 4, 0, 4, 4, 0, 0, 0, 0, 0], [0] * 11)
    one = schedule.parse_schedule("k", BUNDLES, use, 0)
    assert [(r.kind, r.own_bundles) for r in one.matmul_regions] == [("loop", 6), ("branch", 2)]
    assert [r.own("MXU") for r in one.matmul_regions] == [4, 8]


def timed(trips: str = "3", inner: str = "") -> schedule.Region:
    """The kernel with the exit test of its loop, and with a line inside the loop."""
    test = f"%p2 = scmp.ge.s32.totalorder %s3, {trips} /* loop exit test */"
    text = BUNDLES.replace("%10 = dma.vmem_to_hbm %s1 }", f"%10 = dma.vmem_to_hbm %s1 ;; {test} }}")
    text = text.replace("%5 = sbr.rel (%p1) target = $region4", inner) if inner else text
    return schedule.parse_schedule("k", text, USE, 0).kernel


def test_a_loop_runs_as_often_as_its_exit_test_says() -> None:
    kernel = timed()
    [loop] = kernel.children
    assert loop.trips == 3
    assert kernel.executed_bundles == 3 + 3 * 8
    assert timed("50").executed_bundles == 3 + 50 * 8


def test_a_loop_without_an_exit_test_counts_once_and_says_so() -> None:
    assert parsed().kernel.executed_bundles == 3 + 8
    assert timed("%s9").executed_bundles == 3 + 8
    assert not timed("%s9").trips_are_known
    assert timed().trips_are_known


def test_a_loop_that_waits_for_a_copy_needs_no_trips() -> None:
    waiting = "%5 = sbr.rel (%p1) target = $region2"  # back to the bundle before
    kernel = timed(inner=waiting)
    [loop] = kernel.children
    [wait] = loop.children
    assert (wait.kind, wait.bundles, wait.trips) == ("loop", 2, None)
    assert kernel.executed_bundles == 3 + 3 * 8
    assert kernel.trips_are_known


def test_a_short_loop_that_stores_does_not_wait() -> None:
    text = BUNDLES.replace("%5 = sbr.rel (%p1) target = $region4", "%5 = sbr.rel target = $region2")
    stores = USE.splitlines()
    stores[4 + 3] = "0 0 0 0 0 0 0 1 0 1"
    kernel = schedule.parse_schedule("k", text, "\n".join(stores) + "\n", 0).kernel
    assert kernel.children[0].children[0].slots["VSTORE"] == 1
    assert not kernel.trips_are_known
