"""Records of a zip archive that are stored as they are, for reading in place; nothing is extracted.

Compressed records are refused, so an archive cannot unfold into more than its own size.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
import zipfile
import zlib
from pathlib import Path

from modbrick.errors import InputError
from modbrick.formats.stored_tensor import FileBytes, open_file

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _UTF8 = 0x1, 0x800
_CHUNK = 16 << 20


@dataclasses.dataclass(frozen=True)
class _Record:
    data: FileBytes
    crc: int


class ZipRecords:
    """The records of an archive, by their name below the single folder that holds them all."""

    def __init__(self, path: Path):
        """Opens the archive and checks the place of every record.

        Raises:
          InputError: no zip archive, or one that is truncated, encrypted, compressed, has records
            of the same name or place, names outside its folder, or more than one folder.
        """
        self.path = path
        data = open_file(path)
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (
            OSError,
            EOFError,
            ValueError,
            OverflowError,
            NotImplementedError,
            struct.error,
            zipfile.BadZipFile,
        ) as error:
            raise InputError(
                f"{path}: not a readable zip archive ({error}); "
                "what PyTorch wrote before version 1.6 has to be saved again by a newer one"
            ) from None
        self._records: dict[str, _Record] = {}
        self._verified: set[str] = set()
        roots, places = set(), []
        for entry in entries:
            root, name = self._split(entry)
            start, end = self._place(data, entry)
            roots.add(root)
            if len(roots) > 1:
                raise InputError(f"{path}: has more than one folder: {', '.join(sorted(roots))}")
            if name in self._records:
                raise InputError(f"{path}: the record {name!r} stands there twice")
            places.append((entry.header_offset, end, name))
            self._records[name] = _Record(data.part(start, end), entry.CRC)
        places.sort()
        for (_, end, name), (start, _, other) in itertools.pairwise(places):
            if start < end:
                raise InputError(f"{path}: the records {name!r} and {other!r} overlap")

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def size(self, name: str) -> int:
        """Returns the size of a record in bytes, which is within the file.

        Raises:
          InputError: there is no such record.
        """
        return len(self._record(name).data)

    def read(self, name: str) -> FileBytes:
        """Returns a record's bytes in place, after checking its checksum once.

        Raises:
          InputError: there is no such record, or its checksum differs.
        """
        record = self._record(name)
        if name not in self._verified:
            if _crc(record.data) != record.crc:
                raise InputError(
                    f"{self.path}: the record {name!r} fails its checksum; the file is damaged "
                    "(or was saved without checksums: save it again with them)"
                )
            self._verified.add(name)
        return record.data

    def _record(self, name: str) -> _Record:
        if name not in self._records:
            raise InputError(f"{self.path}: has no record {name!r}")
        return self._records[name]

    def _split(self, entry: zipfile.ZipInfo) -> tuple[str, str]:
        name = entry.orig_filename
        parts = name.split("/")
        harmless = all(part not in ("", ".", "..") for part in parts)
        if not harmless or "\\" in name or "\0" in name or len(parts) < 2 or parts[0].endswith(":"):
            raise InputError(f"{self.path}: the record name {name!r} is not a path in one folder")
        return parts[0], "/".join(parts[1:])

    def _place(self, data: FileBytes, entry: zipfile.ZipInfo) -> tuple[int, int]:
        """Returns where the record's bytes start and end, by its local header."""
        where = f"{self.path}: the record {entry.orig_filename!r}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise InputError(f"{where} is compressed, which is never so in a PyTorch file")
        offset = entry.header_offset
        if offset < 0 or offset + _LOCAL_HEADER.size > len(data):
            raise InputError(f"{where} lies outside the file")
        signature, _, flags, method, *_, name_size, extra_size = _LOCAL_HEADER.unpack(
            data.part(offset, offset + _LOCAL_HEADER.size).map().tobytes()
        )
        if (entry.flag_bits | flags) & _ENCRYPTED:
            raise InputError(f"{where} is encrypted")
        start = offset + _LOCAL_HEADER.size
        name = data.part(start, min(start + name_size, len(data))).map().tobytes()
        expected = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")
        if signature != b"PK\3\4" or method != entry.compress_type or name != expected:
            raise InputError(f"{where} is described in two ways that disagree")
        start += name_size + extra_size
        if start + entry.file_size > len(data):
            raise InputError(f"{where} is truncated")
        return start, start + entry.file_size


def _crc(data: FileBytes) -> int:
    crc = 0
    for start in range(0, len(data), _CHUNK):
        crc = zlib.crc32(data.part(start, min(start + _CHUNK, len(data))).map().data, crc)
    return crc
