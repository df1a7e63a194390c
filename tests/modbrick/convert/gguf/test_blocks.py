"""Dequantised values, bit by bit: against the formulas, and against the format's own library."""

from __future__ import annotations

import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from modbrick.convert.gguf.blocks import BLOCK, ENCODINGS, REFUSED, encoding
from modbrick.convert.gguf.header import read_gguf
from modbrick.errors import InputError
from tests.modbrick.convert.gguf import gguf_files as files

FIXTURES = Path(__file__).parents[3] / "fixtures" / "gguf"
QUANTISED = ("Q4_0", "Q4_1", "Q8_0")


def value(name: str, block: bytes, index: int) -> np.float32:
    """One value of a block by the formula, rounded where float32 arithmetic rounds."""
    scale = np.float32(struct.unpack_from("<e", block)[0])
    if name == "Q8_0":
        return np.float32(struct.unpack_from("<b", block, 2 + index)[0]) * scale
    byte = block[(2 if name == "Q4_0" else 4) + index % 16]
    integer = byte >> 4 if index >= 16 else byte & 15
    if name == "Q4_0":
        return np.float32(integer - 8) * scale
    return np.float32(integer) * scale + np.float32(struct.unpack_from("<e", block, 2)[0])


@pytest.mark.parametrize("name", QUANTISED)
def test_blocks_follow_the_formulas(tmp_path: Path, name: str) -> None:
    tensor = files.random_blocks(name, (5, 64))
    path = files.write(tmp_path / "a.gguf", {}, {"x": tensor})
    found = read_gguf(path).tensors["x"]
    size = files.BLOCKS[name][1]
    wanted = [
        value(name, tensor.data[start : start + size], index)
        for start in range(0, len(tensor.data), size)
        for index in range(BLOCK)
    ]
    assert found.dtype == found.read().dtype == np.float32
    assert found.read().tobytes() == np.array(wanted, np.float32).reshape(5, 64).tobytes()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTISED])
def test_every_bit_is_that_of_the_format_s_own_library(name: str) -> None:
    file = read_gguf(FIXTURES / "types.gguf")
    found = file.tensors[name]
    wanted = load_file(FIXTURES / "types.safetensors")[name]
    assert file.encodings[name].name == name
    assert found.shape == wanted.shape
    assert found.read().astype(np.float32).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_numbers_keep_their_dtype(tmp_path: Path, name: str) -> None:
    path = files.write(tmp_path / "a.gguf", {}, {"x": files.random_blocks(name, (3, 5))})
    found = read_gguf(path).tensors["x"]
    wanted = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}[name]
    assert found.dtype == found.read().dtype == wanted
    assert not found.read().flags.writeable


@pytest.mark.parametrize("name", files.BLOCKS)
@pytest.mark.parametrize("shape", [(96,), (7, 32), (3, 2, 64)])
def test_rows_are_those_of_the_whole(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = files.write(tmp_path / "a.gguf", {}, {"x": files.random_blocks(name, shape)})
    found = read_gguf(path).tensors["x"]
    whole = found.read()
    assert whole.shape == shape
    for start in range(shape[0] + 1):
        for stop in range(start, min(start + 3, shape[0]) + 1):
            rows = found.read(start, stop)
            assert rows.shape == whole[start:stop].shape
            assert rows.tobytes() == whole[start:stop].tobytes()
            assert not (rows.size and rows.flags.writeable)


def test_infinite_scales_are_no_warnings(tmp_path: Path) -> None:
    for name, size in (("Q4_0", 18), ("Q4_1", 20), ("Q8_0", 34)):
        block = struct.pack("<e", np.inf) + b"\x08" * (size - 2)
        tensor = files.Tensor((32,), block, files.TYPES[name])
        path = files.write(tmp_path / "a.gguf", {}, {"x": tensor})
        with np.errstate(all="raise"):
            assert not np.isfinite(read_gguf(path).tensors["x"].read()).all()


@pytest.mark.parametrize(("code", "name"), [*REFUSED.items(), (4, "number 4"), (99, "number 99")])
def test_other_types_are_refused_by_name(code: int, name: str) -> None:
    assert code not in ENCODINGS
    with pytest.raises(InputError, match=rf"^x is stored as {name}, which is not read; .* BF16$"):
        encoding(code, "x")
