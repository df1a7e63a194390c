"""Metadata of GGUF files: every type of value, and nothing that lies about its size."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modbrick.convert.gguf import header
from modbrick.convert.gguf.header import read_gguf
from modbrick.convert.gguf.values import DEEPEST_ARRAY, StringArray
from modbrick.errors import InputError
from tests.modbrick.convert.gguf import gguf_files as files
from tests.modbrick.convert.gguf.gguf_files import Typed

NUMBERS = [
    (files.U8, 255),
    (files.I8, -128),
    (files.U16, 65_535),
    (files.I16, -32_768),
    (files.U32, 2**32 - 1),
    (files.I32, -(2**31)),
    (files.F32, 1.5),
    (files.BOOL, True),
    (files.U64, 2**64 - 1),
    (files.I64, -(2**63)),
    (files.F64, 0.1),
]


def value_of(tmp_path: Path, value: Any) -> Any:
    return read_gguf(files.write(tmp_path / "a.gguf", {"x": value})).metadata["x"]


@pytest.mark.parametrize(("kind", "number"), NUMBERS)
def test_numbers(tmp_path: Path, kind: int, number: float) -> None:
    found = value_of(tmp_path, Typed(kind, number))
    assert found == number
    assert type(found) is type(number)
    many = value_of(tmp_path, Typed(files.ARRAY, [number, 0, number], kind))
    assert isinstance(many, np.ndarray)
    assert many.tolist() == [number, 0, number]
    assert not many.flags.writeable
    assert len(value_of(tmp_path, Typed(files.ARRAY, [], kind))) == 0


def test_strings(tmp_path: Path) -> None:
    assert value_of(tmp_path, "grün") == "grün"
    texts = ["", "a", "Ġthe", "東京" * 100, ""]
    found = value_of(tmp_path, texts)
    assert isinstance(found, StringArray)
    assert list(found) == texts
    assert found[-2] == texts[-2]
    assert list(found[1:3]) == texts[1:3]
    assert list(found[3:1]) == []
    assert list(found[:0]) == []
    for index in (5, -6):
        with pytest.raises(IndexError):
            found[index]
    with pytest.raises(ValueError, match="steps of 1"):
        found[::2]
    assert list(value_of(tmp_path, [])) == []


def test_arrays_of_arrays(tmp_path: Path) -> None:
    inner = [Typed(files.ARRAY, [1, 2], files.U8), Typed(files.ARRAY, ["a"], files.STRING)]
    numbers, strings = value_of(tmp_path, Typed(files.ARRAY, inner, files.ARRAY))
    assert numbers.tolist() == [1, 2]
    assert list(strings) == ["a"]


def test_strings_that_are_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the value of 'x' is not UTF-8"):
        value_of(tmp_path, b"\xff")
    found = value_of(tmp_path, Typed(files.ARRAY, [b"fine", b"\xc3("], files.STRING))
    assert found[0] == "fine"
    with pytest.raises(InputError, match=r"the value of 'x': string 1 is not UTF-8"):
        found[1]


def array(item: int, count: int, rest: bytes = b"") -> bytes:
    return files.string("x") + struct.pack("<IIQ", files.ARRAY, item, count) + rest


def nested(depth: int) -> bytes:
    inner = struct.pack("<IQ", files.ARRAY, 1) * (depth - 1) + struct.pack("<IQ", files.U8, 0)
    return files.string("x") + struct.pack("<I", files.ARRAY) + inner


HOSTILE = {
    "an unknown type": (files.string("x") + struct.pack("<I", 13), "unknown value type 13"),
    "an array of an unknown type": (array(77, 0), "array of the unknown value type 77"),
    "a truth value of 2": (files.string("x") + struct.pack("<IB", files.BOOL, 2), "neither 0"),
    "truth values of 2": (array(files.BOOL, 2, b"\0\2"), "neither 0 nor 1"),
    "a string beyond the file": (
        files.string("x") + struct.pack("<I", files.STRING) + files.string("abc", 2**40),
        "at most 67108864 are read",
    ),
    "a string beyond everything": (
        files.string("x") + struct.pack("<I", files.STRING) + files.string("abc", 2**64 - 1),
        "at most 67108864 are read",
    ),
    "a string a little too long": (
        files.string("x") + struct.pack("<I", files.STRING) + files.string("abc", 300),
        "cut off",
    ),
    "more numbers than bytes": (array(files.F64, 2**61, b"\0" * 64), "claims"),
    "more strings than bytes": (array(files.STRING, 2**61, b"\0" * 64), "claims"),
    "an inner string beyond the file": (
        array(files.STRING, 2, files.string("a", 2**63) + b"\0" * 16),
        "cut off",
    ),
    "more arrays than bytes": (array(files.ARRAY, 5000, b"\0" * 64), "claims"),
    "arrays without end": (array(files.ARRAY, 2**60, b"\0" * 64), "too deep or too often"),
    "arrays too deep": (nested(DEEPEST_ARRAY + 1), "too deep"),
    "a key too long": (files.string("x" * 70_000) + b"\0" * 9, "a key of 70000 bytes"),
    "a key that is no text": (files.string(b"\xfe") + struct.pack("<IB", 0, 1), "a key is not UTF"),
    "no key": (files.string("") + struct.pack("<IB", 0, 1), "the key '' is empty"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lies_are_refused(tmp_path: Path, case: str) -> None:
    pairs, message = HOSTILE[case]
    with pytest.raises(InputError, match=message):
        read_gguf(files.write(tmp_path / "a.gguf", pairs, keys=1, body=b"\0" * 32))


def test_the_deepest_arrays_are_read(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", nested(DEEPEST_ARRAY), keys=1)
    value: Any = read_gguf(path).metadata["x"]
    for _ in range(DEEPEST_ARRAY - 1):
        (value,) = value
    assert len(value) == 0


def test_keys_are_unique(tmp_path: Path) -> None:
    twice = files.pair("general.name", "a") * 2
    with pytest.raises(InputError, match=r"'general.name' stands there twice"):
        read_gguf(files.write(tmp_path / "a.gguf", twice, keys=2))


def test_headers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "LARGEST_HEADER", 100)
    value_of(tmp_path, "a" * 50)
    with pytest.raises(InputError, match="beyond 100 bytes of header"):
        value_of(tmp_path, "a" * 90)
    with pytest.raises(InputError, match="and 51 bytes of header are left"):
        value_of(tmp_path, Typed(files.ARRAY, [0] * 90, files.U8))
