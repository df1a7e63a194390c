"""The directory of a run on a remote store, as far as objects in memory can stand in for one."""

from __future__ import annotations

import pytest
from etils import epath

from modbrick.checkpoints import CheckpointConfig, CheckpointStore
from modbrick.checkpoints.workdir.directory import (
    clean,
    complete_steps,
    delete_checkpoint,
    require_own,
)
from tests import remote_store


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    return remote_store.install(monkeypatch)


def put(root: epath.Path, step: int, *, complete: bool) -> None:
    (root / str(step) / "metadata" / "data.json").write_text("{}")
    if complete:
        (root / str(step) / "commit_success.txt").write_text("")


def test_a_run_begins_where_nothing_is(run: epath.Path) -> None:
    with CheckpointStore(run, CheckpointConfig()) as store:
        assert store.steps() == []
        assert store.latest() is None


def test_a_name_is_no_proof_of_completeness(run: epath.Path) -> None:
    root = run / "checkpoints"
    for step, complete in ((3, True), (6, True), (9, False)):
        put(root, step, complete=complete)
    require_own(run)
    assert complete_steps(root) == [3, 6]
    assert clean(root) == ["9"]
    assert sorted(path.name for path in root.iterdir()) == ["3", "6"]
    delete_checkpoint(root / "3")
    assert complete_steps(root) == [6]
