"""Checkpoints written in slices are ordinary ones; checkpoints are read in slices and verified."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from modbrick.checkpoints import Metadata, describe, files, leaves, load_checkpoint, save_model
from modbrick.checkpoints.leaves import checksums, slice_summary
from modbrick.checkpoints.metadata import DamagedError
from modbrick.checkpoints.slices import SliceReader, SliceWriter, StoredForm, piece_shape
from modbrick.config.families import moduleformer
from modbrick.decoder.functional import parameter_table

MODEL = moduleformer(
    vocabulary=101,
    width=16,
    layers=3,
    heads=2,
    attention_width=16,
    feed_forward_width=24,
    attention_experts=4,
    feed_forward_experts=5,
)


def values_of(dtype: jax.typing.DTypeLike) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        info.path: draw.normal(size=info.shape).astype(dtype) for info in parameter_table(MODEL)
    }


def written(directory: Path, dtype: jax.typing.DTypeLike = jnp.bfloat16, limit: int = 300) -> Path:
    """A checkpoint in many small pieces."""
    values = values_of(dtype)
    forms = {}
    for path, value in values.items():
        axes = tuple(range(value.ndim))
        piece = piece_shape(value.shape, value.dtype.itemsize, axes, limit)
        forms[path] = StoredForm(value.shape, value.dtype, piece)
    with SliceWriter(epath.Path(directory / "checkpoints" / "7"), forms) as writer:
        for path, form in forms.items():
            for index in form.pieces():
                assert writer.write(path, index, values[path][index]) == 0
        writer.finish(7, Metadata(model=MODEL))
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("slices"))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_the_ordinary_reader_restores_it(tmp_path: Path, dtype: type) -> None:
    found, description = load_checkpoint(written(tmp_path, dtype))
    assert description.step == 7
    for path, value in values_of(dtype).items():
        restored = np.asarray(found[path])
        assert restored.dtype == value.dtype
        assert restored.tobytes() == value.tobytes(), path


def read(directory: Path) -> dict[str, np.ndarray]:
    path, description = epath.Path(directory / "checkpoints" / "7"), describe(directory)
    reader = SliceReader(path, description)
    found = {}
    for name, leaf in description.parameters.items():
        found[name] = np.empty(leaf.shape, jnp.dtype(leaf.dtype))
        half = leaf.shape[0] // 2
        for span in (slice(0, half), slice(half, leaf.shape[0])):
            index = (span, *(slice(0, size) for size in leaf.shape[1:]))
            found[name][index] = reader.finish(name, index, reader.start(name, index))
    reader.verify()
    return found


def test_slices_are_read_and_verified(checkpoint: Path) -> None:
    for path, value in values_of(jnp.bfloat16).items():
        assert read(checkpoint)[path].tobytes() == value.tobytes(), path


def test_checkpoints_written_whole_are_read_in_slices(tmp_path: Path) -> None:
    values = values_of(np.float32)
    save_model(tmp_path / "m", values, Metadata(model=MODEL), step=7)
    for path, value in read(tmp_path / "m").items():
        assert value.tobytes() == values[path].tobytes(), path


def test_large_stacks_are_stored_by_layers_and_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_PIECE", 3000)
    values = values_of(np.float32)
    save_model(tmp_path / "m", values, Metadata(model=MODEL), step=7)
    path = epath.Path(tmp_path / "m" / "checkpoints" / "7")
    reader = SliceReader(path, describe(tmp_path / "m"))
    for name, piece in {
        "segments.0.feed_forward.up.weight": (1, 1, 16, 24),  # a layer's experts are too large
        "segments.0.attention_norm.scale": (3, 16),  # small enough
        "segments.0.attention.key.weight": (1, 16, 16),
    }.items():
        assert reader._arrays[name][0][1].chunk_layout.read_chunk.shape == piece, name
    for path_, value in read(tmp_path / "m").items():
        assert value.tobytes() == values[path_].tobytes(), path_
    restored, _ = load_checkpoint(tmp_path / "m")
    for path_, value in restored.items():
        assert np.asarray(value).tobytes() == values[path_].tobytes(), path_


def test_reading_only_a_part_does_not_verify(checkpoint: Path) -> None:
    reader = SliceReader(epath.Path(checkpoint / "checkpoints" / "7"), describe(checkpoint))
    with pytest.raises(DamagedError, match="embedding"):
        reader.verify()


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_damaged_files_are_found(checkpoint: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(checkpoint, tmp_path / "m")
    largest = max(data_files(tmp_path / "m"), key=lambda file: file.stat().st_size)
    if how == "truncated":
        largest.write_bytes(largest.read_bytes()[:-1])
    else:
        largest.unlink()
    with pytest.raises(DamagedError):
        read(tmp_path / "m")


def test_one_flipped_bit_of_a_value_is_found(tmp_path: Path) -> None:
    # A piece large enough to lie in a file as it is. Other bytes than a value's might be those of a
    # tree's node that a later one replaced, which nobody reads.
    name, limit = "segments.0.attention.key.weight", 4000
    written(tmp_path, np.float32, limit)
    values = values_of(np.float32)[name]
    shape = piece_shape(values.shape, values.dtype.itemsize, tuple(range(values.ndim)), limit)
    piece = values[next(StoredForm(values.shape, values.dtype, shape).pieces())].tobytes()
    (holder,) = [file for file in data_files(tmp_path) if piece in file.read_bytes()]
    damaged = bytes([piece[0] ^ 1]) + piece[1:]
    holder.write_bytes(holder.read_bytes().replace(piece, damaged))
    with pytest.raises(DamagedError, match=re.escape(name)):
        read(tmp_path)


def data_files(directory: Path) -> list[Path]:
    return list((directory / "checkpoints" / "7" / "parameters" / "d").iterdir())


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("piece", [(2, 3, 4), (1, 5, 6), (4, 5, 6), (4, 1, 6), (4, 5, 1)])
def test_checksums_of_slices_add_up(dtype: Any, piece: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(dtype)
    values[1, 2, 3], values[3, 0, 0], values[0, 4, 5] = np.nan, np.inf, -np.inf
    check_sums(values, piece, not_finite=3)


def test_checksums_of_more_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "_BLOCK", 7)
    values = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    for piece in ((3, 40), (1, 40), (2, 3), (3, 17)):
        check_sums(values, piece, not_finite=0)


def check_sums(values: np.ndarray, piece: tuple[int, ...], not_finite: int) -> None:
    summaries = [
        slice_summary(values[index], [s.start for s in index], values.shape)
        for index in StoredForm(values.shape, values.dtype, piece).pieces()
    ]
    assert (
        sum(summary.checksum for summary in summaries) % 2**32
        == checksums({"x": jnp.asarray(values)})["x"]
    )
    assert sum(summary.not_finite for summary in summaries) == not_finite


def test_indices_beyond_32_bits_wrap_as_in_the_whole() -> None:
    # A slice at the end of a leaf of 2^33 values, which nobody has to hold.
    shape, values = (2**20, 2**13), np.ones((1, 4), np.float32)
    wanted = slice_summary(values, (0, 0), shape)
    assert slice_summary(values, (2**19, 0), shape) == wanted
    assert slice_summary(values, (2**19, 1), shape) != wanted


def test_pieces_are_small_and_cover_everything() -> None:
    for shape in [(7,), (3, 5), (48, 32, 10, 20), (1, 1, 1000)]:
        axes = tuple(range(len(shape)))
        piece = piece_shape(shape, 4, axes, limit=100)
        assert np.prod(piece) * 4 <= 100
        seen = np.zeros(shape, int)
        for index in StoredForm(shape, np.dtype(np.float32), piece).pieces():
            seen[index] += 1
        assert (seen == 1).all()
    assert piece_shape((48, 32, 10, 20), 4, (0, 1), limit=100) == (1, 1, 10, 20)
    assert piece_shape((48, 32), 4, (0, 1), limit=10**6) == (48, 32)
