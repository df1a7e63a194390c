"""Archives are read in place, and only if every record is what and where it claims to be."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest

from modbrick.convert.containers.zip_records import ZipRecords
from modbrick.errors import InputError

RECORDS = {"model/one": b"first record", "model/data/two": b"the second"}


def archive(
    path: Path, records: dict[str, bytes] = RECORDS, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, data in records.items():
            opened.writestr(name, data)
    return path


def patched(
    path: Path, signature: bytes, offset: int, form: str, value: int, skip: int = 0
) -> Path:
    """Overwrites a field in the header (`LOCAL` or `CENTRAL`) of record number `skip`."""
    content = bytearray(path.read_bytes())
    start = -1
    for _ in range(skip + 1):
        start = content.index(signature, start + 1)
    struct.pack_into(form, content, start + offset, value)
    path.write_bytes(content)
    return path


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"


def test_records_are_read_in_place(tmp_path: Path) -> None:
    records = ZipRecords(archive(tmp_path / "a.zip"))
    assert "one" in records
    assert "three" not in records
    assert records.size("data/two") == 10
    assert records.read("data/two").map().tobytes() == b"the second"
    assert not records.read("one").map().flags.writeable
    with pytest.raises(InputError, match="no record 'three'"):
        records.read("three")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records_are_refused_unread(tmp_path: Path, compression: int) -> None:
    path = archive(tmp_path / "a.zip", {"model/bomb": b"\0" * (8 << 20)}, compression)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="'model/bomb' is compressed"):
        ZipRecords(path)


@pytest.mark.parametrize(
    "name",
    ["../one", "model/../../one", "/etc/passwd", "model//one", "model/", "one", "C:/one", "a\\b/c"],
)
def test_names_outside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not a path in one folder"):
        ZipRecords(archive(tmp_path / "a.zip", {name: b"x"}))


def test_names_that_differ_after_a_zero_byte(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"model/one_txt": b"x"})
    path.write_bytes(path.read_bytes().replace(b"one_txt", b"one\0txt"))
    with pytest.raises(InputError, match="is not a path in one folder"):
        ZipRecords(path)


def test_two_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than one folder: a, b"):
        ZipRecords(archive(tmp_path / "a.zip", {"a/one": b"x", "b/one": b"y", "b/two": b"z"}))


def test_the_same_name_twice(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"model/one": b"x", "model/two": b"y"})
    path.write_bytes(path.read_bytes().replace(b"model/two", b"model/one"))
    with pytest.raises(InputError, match="'one' stands there twice"):
        ZipRecords(path)


def test_records_in_the_same_place(tmp_path: Path) -> None:
    # The first record is made to reach into the second.
    path = archive(tmp_path / "a.zip", {"model/one": b"x" * 100, "model/two": b"y"})
    for offset in (20, 24):  # compressed and full size
        patched(path, CENTRAL, offset, "<I", 120)
    with pytest.raises(InputError, match=r"overlap"):
        ZipRecords(path)


@pytest.mark.parametrize(
    ("signature", "offset", "form", "value", "message"),
    [
        (CENTRAL, 42, "<I", 1 << 30, "outside"),  # where the local header is
        (CENTRAL, 42, "<I", 3, "disagree"),
        (CENTRAL, 20, "<I", 5, "compressed"),  # sizes that differ
        (LOCAL, 8, "<H", 8, "disagree"),  # a method that differs
        (LOCAL, 6, "<H", 1, "encrypted"),
        (CENTRAL, 8, "<H", 1, "encrypted"),
        (LOCAL, 26, "<H", 2, "disagree"),  # the length of the name
        (LOCAL, 28, "<H", 0xFFFF, "truncated"),  # the length of what follows the name
        (LOCAL, 30, "<B", ord("M"), "disagree"),  # the name
    ],
)
def test_contradictory_headers(
    tmp_path: Path, signature: bytes, offset: int, form: str, value: int, message: str
) -> None:
    path = patched(archive(tmp_path / "a.zip"), signature, offset, form, value)
    with pytest.raises(InputError, match=message):
        ZipRecords(path)


def test_sizes_beyond_the_file(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip")
    for offset in (20, 24):
        patched(path, CENTRAL, offset, "<I", 0xFFFFFFF0, skip=1)
    with pytest.raises(InputError, match=r"truncated|overlap"):
        ZipRecords(path)


def test_checksums(tmp_path: Path) -> None:
    path = patched(archive(tmp_path / "a.zip"), CENTRAL, 16, "<I", 0)
    records = ZipRecords(path)
    assert records.read("data/two").map().tobytes() == b"the second"
    with pytest.raises(InputError, match="'one' fails its checksum"):
        records.read("one")
