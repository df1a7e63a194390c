"""Rows of a batch on a mesh; two real processes hold theirs in `test_processes.py`."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from modbrick.errors import InputError
from modbrick.parallel import AXES, MeshConfig, make_mesh
from modbrick.parallel.batch import check_batch, check_rows, local_rows, local_slice, place_batch
from tests.modbrick.parallel.device_process import reports_of


def test_one_process_holds_every_row_where_it_belongs() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = {"tokens": np.arange(24, dtype=np.int32).reshape(6, 4)}
    assert local_rows(mesh, 6) == tuple(range(6))
    np.testing.assert_array_equal(place_batch(batch, mesh, 6)["tokens"], batch["tokens"])


@given(st.sets(st.integers(0, 7), min_size=1), st.integers(1, 4))
def test_rows_of_a_device_are_found_among_those_of_its_process(blocks: set[int], size: int) -> None:
    mine = [block * size + i for block in sorted(blocks) for i in range(size)]
    for block in blocks:
        rows = slice(block * size, (block + 1) * size)
        assert mine[local_slice(rows, mine)] == list(range(rows.start, rows.stop))
    assert mine[local_slice(slice(None), mine)] == mine


@pytest.mark.parametrize(
    ("rows", "microbatches", "positions", "message"),
    [
        (12, 1, 32, r"data\.batch_size 12 .* over the 8 devices of .* data 2 x fsdp 2 x expert 2"),
        (24, 2, 32, r"data\.batch_size 24 in 2 training\.microbatches does not divide over the 8"),
        (16, 3, 32, r"data\.batch_size 16 in 3 training\.microbatches does not divide evenly"),
        (16, 1, 30, r"sequence_length 30 does not divide by mesh\.sequence 2 x mesh\.tensor 2"),
    ],
)
def test_what_the_mesh_does_not_divide_is_refused_by_name(
    rows: int, microbatches: int, positions: int, message: str
) -> None:
    mesh = AbstractMesh((2, 2, 2, 2, 2), AXES)
    check_batch(mesh, rows=16, microbatches=2, positions=32)
    with pytest.raises(InputError, match=message):
        check_batch(mesh, rows=rows, microbatches=microbatches, positions=positions)


def test_other_rows_are_refused_by_their_own_name() -> None:
    mesh = AbstractMesh((2, 2, 1, 1, 1), AXES)
    check_rows(mesh, 4, "evaluation.batch_size 4")
    with pytest.raises(InputError, match=r"^evaluation\.batch_size 6 does not divide over the 4"):
        check_rows(mesh, 6, "evaluation.batch_size 6")


def test_only_positions_of_tokens_are_divided() -> None:
    """Three features a row on a sequence axis of four."""
    reports = reports_of("on_devices.py", "batch")
    parts = {report["name"]: report["part"] for report in reports}
    assert parts == {"tokens": [2, 2], "features.look": [2, 3, 5], "share": [2]}
    assert all(report["error"] == 0 for report in reports)
