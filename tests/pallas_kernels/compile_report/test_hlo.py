from __future__ import annotations

import pytest

from pallas_kernels.compile_report.hlo import HloProgram

MODULE = """\
HloModule m

%rows (p.0: bf16[64,128], p.1: s32[16]) -> bf16[16,128] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[16]{0:T(128)} parameter(1)
  ROOT %gather.1 = bf16[16,128]{1,0:T(8,128)(2,1)} gather(%p.0, %p.1), slice_sizes={1,128}
}, execution_thread="sparsecore"

%body (arg: (s32[], f32[256])) -> (s32[], f32[256]) {
  %arg = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[256]{0:T(256)} get-tuple-element(%arg), index=1
  %negate.1 = f32[256]{0:T(256)} negate(%x)
  ROOT %t = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%i, %negate.1)
}

%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %sum = f32[] add(%l, %r)
}

ENTRY %main (a: bf16[64,128], b: s32[16], c: f32[256], d: f32[5,100]) -> bf16[16,128] {
  %a = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = s32[16]{0:T(128)} parameter(1)
  %c = f32[256]{0:T(256)} parameter(2)
  %d = f32[5,100]{1,0:T(8,128)} parameter(3)
  %fused = bf16[16,128]{1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kLoop, calls=%rows
  %copy-start = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0:T(8,128)(2,1)},
    u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[64,128]{1,0:T(8,128)(2,1)}), bf16[16,128]{1,0:T(8,128)(2,1)S(1)},
    s32[]{:S(2)}) slice-start(%a), slice={[0:16], [0:128]}
  %slice-done = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %tuple.1 = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%b, %c)
  %while.1 = (s32[]{:T(128)}, f32[256]{0:T(256)}) while(%tuple.1),
    condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  %padded = f32[5,100]{1,0:T(8,128)} copy(%d)
  %kernel.1 = (bf16[16,128]{1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)S(1)}) custom-call(%fused,
    /*index=1*/%copy-done), custom_call_target="tpu_custom_call",
    frontend_attributes={kernel_metadata={
"more": "text {"
}}, backend_config={}
  %room = f32[256]{0:T(256)} custom-call(), custom_call_target="AllocateBuffer"
  %assumed = s32[16]{0:T(128)} custom-call(%b), custom_call_target="Assume"
  %scattered = f32[256]{0:T(256)} scatter(%c, %b, %x2), to_apply=%add
  ROOT %result = bf16[16,128]{1,0:T(8,128)(2,1)} get-tuple-element(%kernel.1), index=0
}
""".replace("%x2", "%c")


def moved(name: str) -> tuple[int, str]:
    [movement] = [m for m in HloProgram(MODULE).movements() if m.name == name]
    return movement.bytes, movement.category


@pytest.mark.parametrize(
    ("name", "size", "category"),
    [
        # Rows that are gathered are read and written; of the indices, a tile of 128.
        ("fused", 2 * 16 * 128 * 2 + 128 * 4, "gather"),
        # The destination lies in VMEM.
        ("copy-start", 64 * 128 * 2, "copy"),
        # A part of an array, read ahead.
        ("slice-start", 16 * 128 * 2, "copy"),
        ("negate.1", 7 * 2 * 256 * 4, "other"),
        # Tiles of (8, 128) hold 5 x 100 values.
        ("padded", 2 * 8 * 128 * 4, "copy"),
        ("kernel.1", 0, "kernel"),
        # Updates are read; what they touch is read and written.
        ("scattered", 3 * 256 * 4 + 128 * 4, "scatter"),
    ],
)
def test_bytes_by_hand(name: str, size: int, category: str) -> None:
    assert moved(name) == (size, category)


def test_names_for_what_is_there_move_nothing() -> None:
    names = [movement.name for movement in HloProgram(MODULE).movements()]
    assert names == [
        *("fused", "copy-start", "slice-start", "negate.1", "padded", "kernel.1"),
        # Room for an array moves nothing; what an unknown call does is not known to be nothing.
        *("assumed", "scattered"),
    ]


def test_operands_and_results_of_a_kernel() -> None:
    program = HloProgram(MODULE)
    [kernel] = program.kernels()
    assert kernel.shape == ("bf16[16,128]", "f32[8,128]")
    assert [b.in_hbm for b in program.operand_buffers(kernel)] == [True, False]
    assert [b.in_hbm for b in kernel.buffers] == [True, False]


def test_text_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        HloProgram("module {}")


LOOP = """HloModule jit_loop, is_scheduled=true

%body (p: (s32[], f32[256])) -> (s32[], f32[256]) {
  %p = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[256]{0:T(256)} get-tuple-element(%p), index=1
  %y = f32[256]{0:T(256)} negate(%x)
  ROOT %next = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%i, %y)
}

%fused (a: s32[], b: s32[]) -> pred[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %compared = pred[] compare(OPERANDS), direction=DIRECTION
}

%cond (q: (s32[], f32[256])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %bound = s32[]{:T(128)} constant(BOUND)
  ROOT %go = pred[] fusion(%j, %bound), kind=kLoop, calls=%fused
}

ENTRY %main (n: s32[], c: f32[256]) -> (s32[], f32[256]) {
  %n = s32[]{:T(128)} parameter(0)
  %c = f32[256]{0:T(256)} parameter(1)
  %start = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%n, %c)
  ROOT %loop = (s32[]{:T(128)}, f32[256]{0:T(256)}) while(%start), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(
    ("operands", "direction", "bound", "runs"),
    [
        ("%a, %b", "LT", 9, 9),
        # Counting down to a number, or past it, says nothing of how often.
        ("%a, %b", "GT", 9, 1),
        ("%b, %a", "LT", 9, 1),
        ("%a, %b", "NE", 9, 1),
        ("%a, %b", "LT", -3, 1),
    ],
)
def test_loops_without_a_word_on_their_trips(operands, direction, bound, runs: int) -> None:
    text = LOOP.replace("OPERANDS", operands).replace("DIRECTION", direction)
    [negate] = HloProgram(text.replace("BOUND", str(bound))).movements()
    assert negate.executions == runs
    assert negate.bytes == runs * 2 * 256 * 4
