"""Dequantised values, bit by bit: against the formulas, and against the format's own library."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from modbrick.convert.gguf import encodings
from modbrick.convert.gguf.encodings import ENCODINGS, REFUSED, encoding
from modbrick.convert.gguf.header import read_gguf
from modbrick.errors import InputError
from tests.modbrick.convert.gguf import gguf_files as files

FIXTURES = Path(__file__).parents[3] / "fixtures" / "gguf"
QUANTISED = tuple(name for name, (values, _) in files.BLOCKS.items() if values > 1)


def half(block: bytes, place: int) -> np.float32:
    return np.float32(struct.unpack_from("<e", block, place)[0])


def bits(block: bytes, first: int, place: int, run: int, width: int) -> int:
    """Integer number `place` of those that lie in planes over runs of bytes from `first` on."""
    number, within = divmod(place, run * 8 // width)
    plane, index = divmod(within, run)
    return block[first + number * run + index] >> width * plane & (1 << width) - 1


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def scale_and_minimum(block: bytes, group: int) -> tuple[int, int]:
    """Of a group of Q4_K and Q5_K, as ggml unpacks them."""
    packed = block[4:16]
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    halves = packed[group + 4]
    return halves & 15 | packed[group - 4] >> 6 << 4, halves >> 4 | packed[group] >> 6 << 4


def value(name: str, block: bytes, index: int) -> np.float32:
    """One value of a block by the formula, rounded where float32 arithmetic rounds."""
    match name:
        case "Q8_0":
            return np.float32(signed(block[2 + index])) * half(block, 0)
        case "Q4_0":
            return np.float32(bits(block, 2, index, 16, 4) - 8) * half(block, 0)
        case "Q4_1":
            return np.float32(bits(block, 4, index, 16, 4)) * half(block, 0) + half(block, 2)
        case "Q5_0" | "Q5_1":
            first = 2 if name == "Q5_0" else 4
            fifth = int.from_bytes(block[first : first + 4], "little") >> index & 1
            integer = bits(block, first + 4, index, 16, 4) | fifth << 4
            if name == "Q5_0":
                return np.float32(integer - 16) * half(block, 0)
            return np.float32(integer) * half(block, 0) + half(block, 2)
        case "Q2_K":
            scale, minimum = block[index // 16] & 15, block[index // 16] >> 4
            factor = half(block, 80) * np.float32(scale)
            offset = half(block, 82) * np.float32(minimum)
            return factor * np.float32(bits(block, 16, index, 32, 2)) - offset
        case "Q3_K":
            group = index // 16
            scale = bits(block, 96, group, 8, 4) | bits(block, 104, group, 4, 2) << 4
            factor = half(block, 108) * np.float32(scale - 32)
            third = bits(block, 0, index, 32, 1)
            return factor * np.float32(bits(block, 32, index, 32, 2) - (0 if third else 4))
        case "Q4_K" | "Q5_K":
            scale, minimum = scale_and_minimum(block, index // 32)
            integer = bits(block, 16 if name == "Q4_K" else 48, index, 32, 4)
            if name == "Q5_K":
                integer |= bits(block, 16, index, 32, 1) << 4
            offset = half(block, 2) * np.float32(minimum)
            return half(block, 0) * np.float32(scale) * np.float32(integer) - offset
        case _:
            integer = bits(block, 0, index, 64, 4) | bits(block, 128, index, 32, 2) << 4
            factor = half(block, 208) * np.float32(signed(block[192 + index // 16]))
            return factor * np.float32(integer - 32)


@pytest.mark.parametrize("name", QUANTISED)
def test_blocks_follow_the_formulas(tmp_path: Path, name: str) -> None:
    values, size = files.BLOCKS[name]
    tensor = files.random_blocks(name, (3, 2 * values))
    path = files.write(tmp_path / "a.gguf", {}, {"x": tensor})
    found = read_gguf(path).tensors["x"]
    wanted = [
        value(name, tensor.data[start : start + size], index)
        for start in range(0, len(tensor.data), size)
        for index in range(values)
    ]
    assert found.dtype == found.read().dtype == np.float32
    assert found.read().tobytes() == np.array(wanted, np.float32).reshape(3, -1).tobytes()


def test_memory_is_that_of_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between bytes and values is made for a few blocks at a time."""
    tensor = files.random_blocks("Q6_K", (64, 1024))
    found = read_gguf(files.write(tmp_path / "a.gguf", {}, {"x": tensor})).tensors["x"]
    whole = found.read()
    monkeypatch.setattr(encodings, "AT_A_TIME", 1 << 12)
    tracemalloc.start()
    sliced = found.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sliced.tobytes() == whole.tobytes()
    assert peak < 1.5 * whole.nbytes


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
@pytest.mark.parametrize("blocks", [(3,), (7, 1), (3, 2, 2)])
def test_rows_are_those_of_the_whole(tmp_path: Path, name: str, blocks: tuple[int, ...]) -> None:
    values = files.BLOCKS[name][0]
    shape = (*blocks[:-1], blocks[-1] * (32 if values == 1 else values))
    path = files.write(tmp_path / "a.gguf", {}, {"x": files.random_blocks(name, shape)})
    found = read_gguf(path).tensors["x"]
    whole = found.read()
    assert whole.shape == shape
    for start in {*range(8), values, shape[0] - 1, shape[0]} & {*range(shape[0] + 1)}:
        for stop in range(start, min(start + 3, shape[0]) + 1):
            rows = found.read(start, stop)
            assert rows.shape == whole[start:stop].shape
            assert rows.tobytes() == whole[start:stop].tobytes()
            assert not (rows.size and rows.flags.writeable)


def test_infinite_scales_are_no_warnings(tmp_path: Path) -> None:
    for name in QUANTISED:
        values, size = files.BLOCKS[name]
        block = bytearray(b"\x08" * size)
        for place in files.SCALES[name]:
            struct.pack_into("<e", block, place, np.inf)
        tensor = files.Tensor((values,), bytes(block), files.TYPES[name])
        path = files.write(tmp_path / "a.gguf", {}, {"x": tensor})
        with np.errstate(all="raise"):
            assert not np.isfinite(read_gguf(path).tensors["x"].read()).all()


@pytest.mark.parametrize(("code", "name"), [*REFUSED.items(), (4, "number 4"), (99, "number 99")])
def test_other_types_are_refused_by_name(code: int, name: str) -> None:
    assert code not in ENCODINGS
    with pytest.raises(InputError, match=rf"^x is stored as {name}, which is not read; .* BF16$"):
        encoding(code, "x")
