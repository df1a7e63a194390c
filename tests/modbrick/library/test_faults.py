"""Files of bricks and of libraries on a disk that fails: refused by name, and nothing half made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modbrick.errors import InputError
from modbrick.library import Library, open_brick, write_brick
from tests.faults import broken, within
from tests.modbrick.library.tiny import described

SECONDS = 30.0
WRITES: dict[str, Callable[[Path], object]] = {
    "the file of a brick": lambda place: write_brick(place / "new.brick", *described("de")),
    "a new library": lambda place: Library.create(place / "library").add(place / "one.brick"),
    "a brick in a library": lambda place: Library.open(place / "old").add(place / "one.brick"),
}


@pytest.mark.parametrize("fault", ["no space", "no permission", "read-only"])
@pytest.mark.parametrize("what", WRITES)
def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path, what: str, fault: str) -> None:
    write_brick(tmp_path / "one.brick", *described("de"))
    write_brick(tmp_path / "other.brick", *described("law"))
    Library.create(tmp_path / "old").add(tmp_path / "other.brick")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with broken(tmp_path, fault), pytest.raises(InputError, match=r"cannot be (made|written)") as e:
        within(SECONDS, lambda: WRITES[what](tmp_path))
    assert "\n" not in str(e.value)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if data or path in before} == before
    assert list(Library.open(tmp_path / "old")) == ["law"]
    open_brick(tmp_path / "one.brick")
