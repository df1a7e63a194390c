from __future__ import annotations

import pytest

from modbrick.planning.compiled.collectives import read_collectives, total_by_kind
from pallas_kernels.compile_report.hlo import HloProgram

MESH = {"data": 2, "fsdp": 2, "expert": 2, "sequence": 1, "tensor": 1}
NAMED = "replica_groups=mesh['data'=2,'fsdp'=2,'expert'=2,'sequence'=1,'tensor'=1]"

TEXT = f"""\
HloModule m

%add (l: f32[], r: f32[]) -> f32[] {{
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %sum = f32[] add(%l, %r)
}}

%start (p: bf16[4,8]) -> (bf16[8,8], u32[]) {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %all-gather.1 = bf16[8,8]{{1,0}} all-gather(%p), {NAMED} {{'expert'}}, dimensions={{0}},
    frontend_attributes={{chain_id="0"}}
  ROOT %begun = (bf16[8,8]{{1,0}}, u32[]) custom-call(%all-gather.1),
    custom_call_target="AsyncCollectiveStart"
}}

%beside (q: bf16[4,8]) -> bf16[8,8] {{
  %q = bf16[4,8]{{1,0}} parameter(0)
  ROOT %all-gather.2 = bf16[8,8]{{1,0}} all-gather(%q), {NAMED} {{'expert'}}, dimensions={{0}},
    frontend_attributes={{chain_id="0"}}
}}

%all-reduce-scatter.1 (whole: bf16[8,8]) -> bf16[4,8] {{
  %whole = bf16[8,8]{{1,0}} parameter(0)
  %all-reduce.2 = bf16[8,8]{{1,0}} all-reduce(%whole), {NAMED} {{'expert'}}, to_apply=%add
  ROOT %part = bf16[4,8]{{1,0}} slice(%all-reduce.2), slice={{[0:4], [0:8]}}
}}

%body (arg: (s32[], f32[64])) -> (s32[], f32[64]) {{
  %arg = (s32[], f32[64]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[64]{{0}} get-tuple-element(%arg), index=1
  %all-reduce.1 = f32[64]{{0}} all-reduce(%x), {NAMED} {{'data','fsdp'}}, to_apply=%add
  ROOT %t = (s32[], f32[64]{{0}}) tuple(%i, %all-reduce.1)
}}

%until (arg.1: (s32[], f32[64])) -> pred[] {{
  %arg.1 = (s32[], f32[64]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%arg.1), index=0
  %bound = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}}

ENTRY %main (a: f32[64], b: bf16[4,8], c: s32[]) -> f32[64] {{
  %a = f32[64]{{0}} parameter(0)
  %b = bf16[4,8]{{1,0}} parameter(1)
  %c = s32[] parameter(2)
  %wide = bf16[8,64]{{1,0}} broadcast(%b), dimensions={{}}
  %init = (s32[], f32[64]{{0}}) tuple(%c, %a)
  %loop = (s32[], f32[64]{{0}}) while(%init), condition=%until, body=%body
  %first = (bf16[8,8]{{1,0}}, u32[]) fusion(%b), kind=kCustom, calls=%start
  %second = bf16[8,8]{{1,0}} fusion(%b), kind=kCustom, calls=%beside
  %kept = bf16[4,8]{{1,0}} fusion(%second), kind=kCustom, calls=%all-reduce-scatter.1
  %scattered = f32[32]{{0}} reduce-scatter(%a), replica_groups=[4,2]<=[2,2,2]T(1,2,0),
    dimensions={{0}}, to_apply=%add
  %everyone = f32[64]{{0}} all-reduce(%a), replica_groups={{}}, to_apply=%add
  %passed = f32[64]{{0}} collective-permute(%a), source_target_pairs={{{{0,2}},{{2,0}}}}
  %padded = bf16[8,64]{{1,0}} all-reduce(%wide), {NAMED} {{'fsdp'}}, to_apply=%add,
    metadata={{op_name="jit(step)/jvp()/shard_map/all_gather" stack_frame_id=4}}
  %alone = f32[64]{{0}} all-reduce(%a), {NAMED} {{'tensor'}}, to_apply=%add
  ROOT %result = f32[64]{{0}} get-tuple-element(%loop), index=1
}}
"""


def found():
    return {(c.kind, c.axes): c for c in read_collectives(HloProgram(TEXT), MESH)}


def test_loops_count_by_the_bound_of_their_condition():
    collective = found()["all-reduce", "data+fsdp"]
    assert collective.executions == 12
    # Four devices reduce 256 bytes: twice three quarters of them arrive at each.
    assert collective.bytes == 12 * 2 * 256 * 3 / 4
    assert collective.group == (0, 2, 4, 6)


def test_a_collective_beside_other_work_counts_once():
    collective = found()["all-gather", "expert"]
    assert (collective.executions, collective.bytes) == (1, 64.0)
    assert collective.asynchronous


@pytest.mark.parametrize(
    ("kind", "axes", "size", "group"),
    [
        ("reduce-scatter", "data", 128.0, (0, 4)),
        ("all-reduce", "data+fsdp+expert", 2 * 256 * 7 / 8, tuple(range(8))),
        ("collective-permute", "fsdp", 256.0, (0, 2)),
    ],
)
def test_groups_in_every_notation(kind, axes, size, group):
    collective = found()[kind, axes]
    assert collective.bytes == size
    assert collective.group == group
    assert not collective.asynchronous


def test_a_sum_of_which_each_device_keeps_a_part_is_scattered():
    collective = found()["reduce-scatter", "expert"]
    assert collective.bytes == 8 * 8 * 2 / 2
    assert ("all-reduce", "expert") not in found()


def test_groups_of_one_are_none():
    assert all(collective.axes for collective in read_collectives(HloProgram(TEXT), MESH))


def test_totals_keep_every_byte():
    collectives = read_collectives(HloProgram(TEXT), MESH)
    totals = total_by_kind((c, 1e-6 * c.bytes) for c in collectives)
    assert sum(t.bytes for t in totals) == sum(c.bytes for c in collectives)
    assert [t.seconds for t in totals] == sorted((t.seconds for t in totals), reverse=True)


def test_gathers_that_became_sums_are_told_apart():
    """An all-reduce of arrays that are zero but for each device's part: twice a gather's bytes."""
    padded = found()["all-reduce", "fsdp"]
    assert padded.gathers
    assert padded.bytes == 2 * 8 * 64 * 2 / 2
    assert not found()["all-reduce", "data+fsdp"].gathers
    totals = {t.axes: t for t in total_by_kind((c, 1.0) for c in found().values())}
    assert totals["fsdp"].gathering_bytes == padded.bytes
    assert totals["data+fsdp"].gathering_bytes == 0
