"""Safetensors: read and written as the reference does, but for what contradicts itself."""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from modbrick.errors import InputError
from modbrick.formats.safetensors import (
    LARGEST_HEADER,
    SafetensorsWriter,
    TensorSpec,
    read_safetensors,
    read_with_metadata,
)

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: Any, body: bytes = b"\0" * 24) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32),
        *(np.int64, np.uint64, np.float16, np.float32, np.float64, jnp.bfloat16),
    ],
)
def test_reads_what_the_reference_writes(tmp_path: Path, dtype: type) -> None:
    values: dict[str, np.ndarray] = {
        "matrix": np.arange(12).reshape(3, 4).astype(dtype),
        "scalar": np.ones((), dtype),
        "nothing": np.zeros((0, 5), dtype),
    }
    path = tmp_path / "a.safetensors"
    save_file(values, path, metadata={"format": "np"})
    found = read_safetensors(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == found[name].read().dtype == value.dtype
        assert np.array_equal(found[name].read(), value)
        assert not found[name].read().flags.writeable


HOSTILE: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{oops", "not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "no object": ([], "expected a JSON object"),
    "nested without end": (b"[" * 200_000, "not valid JSON"),
    "an endless number": (b'{"x": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "a name twice": (
        b'{"x": %b, "x": %b}' % ((json.dumps(F32).encode(),) * 2),
        "'x' stands there twice",
    ),
    "a key twice": (
        b'{"x": {"dtype": "F32", "dtype": "I32", "shape": [2, 3], "data_offsets": [0, 24]}}',
        "'dtype' stands there twice",
    ),
    "no entry": ({"x": 3}, "expected exactly"),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 24]}}, "expected exactly"),
    "more than that": ({"x": {**F32, "stride": [1]}}, "expected exactly"),
    "unknown dtype": ({"x": {**F32, "dtype": "F4"}}, "'F4' is not one of"),
    "unhashable dtype": ({"x": {**F32, "dtype": ["F32"]}}, "is not one of"),
    "negative size": ({"x": {**F32, "shape": [-2, -3]}}, "lists of counts"),
    "fractional size": ({"x": {**F32, "shape": [2.0, 3]}}, "lists of counts"),
    "size a truth value": ({"x": {**F32, "shape": [True, 6]}}, "lists of counts"),
    "shape a number": ({"x": {**F32, "shape": 6}}, "lists of counts"),
    "three offsets": ({"x": {**F32, "data_offsets": [0, 24, 24]}}, "do not lie in"),
    "offsets reversed": ({"x": {**F32, "data_offsets": [24, 0]}}, "do not lie in"),
    "negative offset": ({"x": {**F32, "data_offsets": [-24, 0]}}, "lists of counts"),
    "offset beyond the file": ({"x": {**F32, "data_offsets": [0, 25]}}, "do not lie in"),
    "offset beyond everything": ({"x": {**F32, "data_offsets": [0, 2**70]}}, "do not lie in"),
    "shape too large": ({"x": {**F32, "shape": [3, 3]}}, "needs 36 bytes"),
    "shape beyond everything": ({"x": {**F32, "shape": [2**40, 2**40]}}, "needs"),
    "nothing of everything": (
        {"x": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, "y": F32},
        "too large",
    ),
    "too many axes": (
        {"x": {"dtype": "F32", "shape": [1] * 40, "data_offsets": [0, 4]}},
        "40 axes",
    ),
    "overlap": (
        {"x": F32, "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        "overlaps",
    ),
    "gap": ({"x": {"dtype": "F32", "shape": [5], "data_offsets": [4, 24]}}, "leaves a gap"),
    "metadata no texts": ({"__metadata__": {"a": 1}, "x": F32}, "__metadata__ must hold texts"),
    "metadata no table": ({"__metadata__": ["a"], "x": F32}, "__metadata__ must hold texts"),
    "bytes of nobody": ({"x": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}, "4 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_contradictions_are_refused(tmp_path: Path, case: str) -> None:
    header, message = HOSTILE[case]
    with pytest.raises(InputError, match=message):
        read_safetensors(write(tmp_path / "a.safetensors", header))


VALUES: dict[str, np.ndarray] = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5).astype(jnp.bfloat16),
    "scalar": np.array(3, np.float16),
    "c.ä": np.arange(6).reshape(1, 6).astype(np.float16),
}
SPECS = {name: TensorSpec(value.shape, value.dtype) for name, value in VALUES.items()}


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "licence": "å\n"}])
def test_the_reference_reads_what_is_written_in_pieces(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, SPECS, metadata) as writer:
        writer.write(VALUES["a"][:1])
        writer.write(VALUES["a"].T[:, 1:].T)  # not in C order
        for name in ("b", "scalar", "c.ä"):
            writer.write(VALUES[name])
    found = load_file(path)
    assert found.keys() == VALUES.keys()
    tensors, kept = read_with_metadata(path)
    assert kept == metadata
    for name, value in VALUES.items():
        assert found[name].tobytes() == value.tobytes()
        assert tensors[name].read().tobytes() == value.tobytes()
    with safe_open(path, "numpy") as opened:
        assert (opened.metadata() or {}) == metadata
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_other_values_than_announced_are_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="announced, not written"),
        SafetensorsWriter(tmp_path / "few", SPECS) as writer,
    ):
        writer.write(VALUES["a"])
    with (
        pytest.raises(ValueError, match="only 72 are left"),
        SafetensorsWriter(tmp_path / "many", SPECS) as writer,
    ):
        writer.write(np.zeros(100))
    for name, dtype in (("__metadata__", np.float32), ("a", np.complex64)):
        with pytest.raises(ValueError, match="no safetensors file holds"):
            SafetensorsWriter(tmp_path / "other", {name: TensorSpec((1,), np.dtype(dtype))})


# Why the reader and the writer are not those of the `safetensors` package.


@pytest.mark.parametrize("case", ["a name twice", "more than that", "nothing of everything"])
def test_the_package_takes_contradictions(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "a.safetensors", HOSTILE[case][0])
    with safe_open(path, "numpy") as opened:
        assert "x" in opened.keys()  # noqa: SIM118
    with pytest.raises(InputError):
        read_safetensors(path)


def resident() -> int:
    """Bytes of this process that are in memory, those of mapped files among them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_package_holds_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    specs = {str(number): TensorSpec((8, 1 << 20), np.dtype(np.uint8)) for number in range(16)}
    with SafetensorsWriter(path, specs) as writer:
        for _ in specs:
            writer.write(np.ones((8, 1 << 20), np.uint8))
    before, most = resident(), 0
    for tensor in read_safetensors(path).values():
        for row in range(8):
            tensor.read(row, row + 1).sum()
            most = max(most, resident() - before)
    assert most < 20 << 20
    with safe_open(path, "numpy") as opened:
        for name in specs:
            for row in range(8):
                opened.get_slice(name)[row : row + 1].sum()
        assert resident() - before > 100 << 20


@pytest.mark.parametrize("size", [25, LARGEST_HEADER + 1, 2**63, 2**64 - 1])
def test_header_sizes_that_lie(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}" + b" " * 22)
    with pytest.raises(InputError, match="a header of"):
        read_safetensors(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.safetensors", {"x": F32}).read_bytes()
    short = tmp_path / "short.safetensors"
    for size in range(len(content)):
        short.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_safetensors(short)


def fuzz(directory: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "BF16", "shape": [6], "data_offsets": [12, 24]},
    }
    path = directory / "fuzzed.safetensors"
    content = write(path, header).read_bytes()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 6])):
            position = draw.randrange(len(changed))
            if draw.random() < 0.7:
                changed[position] = draw.choice([*b'0129-.[]{}",e\0\xff', draw.randrange(256)])
            else:
                del changed[position : position + draw.randint(1, 4)]
        path.write_bytes(changed)
        try:
            found = {name: stored.read() for name, stored in read_safetensors(path).items()}
        except InputError:
            outcomes["refused"] += 1
        else:
            assert sum(value.nbytes for value in found.values()) <= len(changed)
            outcomes["read"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 2000, seed=1)


@pytest.mark.verify
def test_many_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 40_000, seed=2)
