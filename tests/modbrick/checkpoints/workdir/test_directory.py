import contextlib
import threading
import time

import pytest
from etils import epath

from modbrick.checkpoints.workdir.directory import (
    clean,
    complete_steps,
    delete_checkpoint,
    move_aside,
    remove_unfinished,
    require_own,
)
from modbrick.errors import InputError
from modbrick.paths import as_path


@pytest.fixture
def root(tmp_path):
    for name in ("5", "40", "300", "7.orbax-checkpoint-tmp", "6.deleted", "20.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return epath.Path(tmp_path) / "checkpoints"


def test_complete_ones_are_listed_by_number(root):
    assert complete_steps(root) == [5, 40, 300]
    assert complete_steps(root / "none") == []


def test_unfinished_and_half_deleted_ones_are_removed_and_damaged_ones_kept(root):
    assert clean(root) == ["7"]
    assert sorted(p.name for p in root.iterdir()) == ["20.damaged", "300", "40", "5"]


def test_what_a_failed_save_left_is_removed_though_its_threads_still_write(root):
    unfinished, ended = root / "7.orbax-checkpoint-tmp", time.monotonic() + 0.2

    def write():
        number = 0
        while time.monotonic() < ended:
            with contextlib.suppress(OSError):  # removed under it
                (unfinished / "d").mkdir(parents=True, exist_ok=True)
                (unfinished / "d" / str(number)).touch()
            number += 1

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    remove_unfinished(root / "7")
    for writer in writers:
        writer.join()
    assert not unfinished.exists()
    assert complete_steps(root) == [5, 40, 300]


def test_deleting_and_moving_aside(root):
    delete_checkpoint(root / "5")
    (root / "20.damaged" / "old").mkdir()
    (root / "40").rename(root / "20")
    move_aside(root / "20")
    assert complete_steps(root) == [300]
    assert not (root / "20.damaged" / "old").exists()


def test_own_directories_pass(root, tmp_path):
    require_own(root.parent)
    require_own(epath.Path(tmp_path / "absent"))
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / ".hidden").touch()
    require_own(epath.Path(tmp_path / "fresh"))


def test_foreign_directories_are_refused_by_what_they_hold(root, tmp_path):
    (root / "notes").mkdir()
    with pytest.raises(InputError, match="notes"):
        require_own(root.parent)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(InputError, match=r"thesis holds something else \(chapter1.tex\)"):
        require_own(epath.Path(tmp_path / "thesis"))
    with pytest.raises(InputError, match="is a file"):
        require_own(epath.Path(tmp_path / "thesis" / "chapter1.tex"))


def test_remote_paths_are_left_as_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(as_path("gs://bucket/run")) == "gs://bucket/run"
    assert str(as_path("runs/a")) == str(tmp_path / "runs/a")
