"""Writes GGUF files for tests, valid ones or as hostile as they are asked to be."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
FORMATS |= {U64: "Q", I64: "q", F64: "d"}

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10}
TYPES |= {"Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "BF16": 30}
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2)}
BLOCKS |= {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34)}
BLOCKS |= {"Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176)}
BLOCKS |= {"Q6_K": (256, 210)}
SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,)}
SCALES |= {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where float16 scales stand in a block."""


@dataclasses.dataclass(frozen=True)
class Typed:
    """A value with the code of its type; of an array, `item` is the code of what is in it."""

    kind: int
    value: Any
    item: int | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in numpy's order of axes; None: what a file would have."""

    shape: Sequence[int]
    data: bytes = b""
    kind: int = TYPES["F32"]
    offset: int | None = None


def string(text: str | bytes, size: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def typed(value: Any) -> Typed:
    """The usual type of a value."""
    match value:
        case Typed():
            return value
        case bool():
            return Typed(BOOL, value)
        case int():
            return Typed(U32, value)
        case float():
            return Typed(F32, value)
        case str() | bytes():
            return Typed(STRING, value)
        case [float(), *_]:
            return Typed(ARRAY, value, F32)
        case [int(), *_]:
            return Typed(ARRAY, value, I32)
        case _:
            return Typed(ARRAY, value, STRING)


def encoded(kind: int, value: Any, item: int | None = None) -> bytes:
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        assert item is not None
        values = [typed(v) if item == ARRAY else Typed(item, v) for v in value]
        body = b"".join(encoded(item, v.value, v.item) for v in values)
        return struct.pack("<IQ", item, len(value)) + body
    return struct.pack("<" + FORMATS[kind], value)


def pair(key: str | bytes, value: Any) -> bytes:
    value = typed(value)
    return (
        string(key) + struct.pack("<I", value.kind) + encoded(value.kind, value.value, value.item)
    )


def content(
    metadata: Mapping[str, Any] | bytes = {},
    tensors: Mapping[str, Tensor] | bytes = {},
    *,
    body: bytes | None = None,
    alignment: int = 32,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: int | None = None,
    count: int | None = None,
) -> bytes:
    """The bytes of a file; metadata and tensor descriptions may be given as bytes."""
    pairs, infos, laid = metadata, tensors, b""
    if not isinstance(pairs, bytes):
        keys = len(pairs) if keys is None else keys
        pairs = b"".join(pair(key, value) for key, value in pairs.items())
    if not isinstance(infos, bytes):
        count = len(infos) if count is None else count
        found = b""
        for name, tensor in infos.items():
            laid += b"\0" * (-len(laid) % alignment)
            offset = len(laid) if tensor.offset is None else tensor.offset
            shape = tuple(reversed(tensor.shape))
            found += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            found += struct.pack("<IQ", tensor.kind, offset)
            laid += tensor.data
        infos = found
    header = magic + struct.pack("<IQQ", version, count or 0, keys or 0) + pairs + infos
    return header + b"\0" * (-len(header) % alignment) + (laid if body is None else body)


def write(path: Path, *arguments: Any, **options: Any) -> Path:
    path.write_bytes(content(*arguments, **options))
    return path


def overwrite(path: Path, content: bytes | bytearray) -> None:
    """Writes into the blocks that a file has, which is far quicker than freeing them first."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def floats(*shape: int) -> Tensor:
    """A float32 tensor of ascending numbers."""
    return Tensor(shape, np.arange(int(np.prod(shape)), dtype="<f4").tobytes())


def random_blocks(name: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """A tensor of any type of random bytes, with scales of a sensible size."""
    draw = np.random.default_rng(seed)
    values, size = BLOCKS[name]
    blocks = draw.integers(0, 256, (int(np.prod(shape)) // values, size), np.uint8)
    if values > 1:
        for place in SCALES[name]:
            scales = draw.normal(size=(len(blocks), 1)).astype("<f2")
            blocks[:, place : place + 2] = scales.view(np.uint8)
        return Tensor(shape, blocks.tobytes(), TYPES[name])
    plain = draw.normal(size=tuple(shape)).astype("<f4")
    if name == "F16":
        return Tensor(shape, plain.astype("<f2").tobytes(), TYPES[name])
    if name == "BF16":
        return Tensor(shape, (plain.view("<u4") >> 16).astype("<u2").tobytes(), TYPES[name])
    return Tensor(shape, plain.tobytes(), TYPES[name])
