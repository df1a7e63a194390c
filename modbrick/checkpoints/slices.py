"""Checkpoints written and read slice by slice, so that models larger than memory pass through.

The arrays of a checkpoint lie where Orbax puts them: in `parameters`, an OCDBT store of TensorStore
with one zarr array a leaf, under the leaf's dotted name. Orbax itself writes and reads whole trees
of arrays in memory; here it writes everything but the values, which follow in slices, and what
comes out is an ordinary checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath

from modbrick.checkpoints import files
from modbrick.checkpoints.base import base_path, require_base
from modbrick.checkpoints.inventory import verify_inventory, write_inventory
from modbrick.checkpoints.leaves import Leaf, slice_summary
from modbrick.checkpoints.metadata import (
    DamagedError,
    Description,
    Metadata,
    new_description,
    seal,
)
from modbrick.checkpoints.parts import Part, others
from modbrick.checkpoints.workdir.directory import write_text
from modbrick.checkpoints.workdir.link import plain_path
from modbrick.errors import listed

SLICE = 8 << 20
"""Bytes of a slice, about: what a reader that wants less still reads."""

_IN_FLIGHT = 384 << 20
"""Bytes handed to TensorStore and not yet on disk."""

_DATA_FILE = 256 << 20
"""Bytes of a file of values; TensorStore holds as much of it in memory until it is written."""


@dataclasses.dataclass(frozen=True)
class StoredForm:
    """Form in which a leaf is stored: its shape, its dtype, and the shape of its chunks."""

    shape: tuple[int, ...]
    dtype: np.dtype
    piece: tuple[int, ...]

    def pieces(self) -> Iterator[tuple[slice, ...]]:
        """Yields the pieces, in order."""
        counts = [-(-n // size) for n, size in zip(self.shape, self.piece, strict=True)]
        for index in np.ndindex(*counts):
            yield tuple(
                slice(i * size, min((i + 1) * size, n))
                for i, size, n in zip(index, self.piece, self.shape, strict=True)
            )


def piece_shape(
    shape: tuple[int, ...], itemsize: int, axes: tuple[int, ...], limit: int = SLICE
) -> tuple[int, ...]:
    """Returns the shape of pieces of about `limit` bytes at most, equal but for the last.

    Args:
      shape: of the whole.
      itemsize: bytes of a value.
      axes: that may be divided, the first one first; it stays larger than `limit` if they do not
        suffice.
      limit: in bytes.
    """
    piece = list(shape)
    for axis in axes:
        size = int(np.prod(piece, dtype=np.int64)) * itemsize
        if size <= limit:
            break
        most = max(1, limit * piece[axis] // size)
        piece[axis] = -(-shape[axis] // -(-shape[axis] // most))
    return tuple(piece)


class SliceWriter:
    """Writes the parameters of a checkpoint in slices; use it in `with`.

    The checkpoint is whole only after `finish`; write it under a temporary name.
    """

    def __init__(self, path: epath.Path, forms: Mapping[str, StoredForm]):
        """Makes the checkpoint with arrays that have no values yet.

        Args:
          path: of the checkpoint, local; it must not exist.
          forms: of every parameter, by dotted path.

        Raises:
          OSError, ValueError: it cannot be written.
        """
        self._path, self._forms = path, forms
        files.write_structure(path, {name: form.piece for name, form in forms.items()})
        self._context = _context()
        self._sums = dict.fromkeys(forms, 0)
        self._pending: collections.deque[tuple[ts.Future, int]] = collections.deque()
        self._bytes = 0
        opened = {name: self._create(name, form) for name, form in forms.items()}
        self._arrays = {name: array.result() for name, array in opened.items()}

    def __enter__(self) -> SliceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What is on its way to the disk must not arrive after the directory was removed.
        for commit, _ in self._pending:
            with contextlib.suppress(Exception):  # an error is on its way up already
                commit.result()
        self._pending.clear()

    def write(self, name: str, index: tuple[slice, ...], values: np.ndarray) -> int:
        """Writes one piece; returns how many of its values are not finite.

        Returns when it is copied or written; waits if too much is on its way to the disk.
        """
        form = self._forms[name]
        summary = slice_summary(values, [s.start for s in index], form.shape)
        self._sums[name] = (self._sums[name] + summary.checksum) % 2**32
        self._wait(_IN_FLIGHT - values.nbytes)
        written = self._arrays[name][index].write(values)
        written.copy.result()
        self._pending.append((written.commit, values.nbytes))
        self._bytes += values.nbytes
        return summary.not_finite

    def finish(self, step: int, metadata: Metadata) -> Description:
        """Waits until everything is on disk and writes what the checkpoint says about itself."""
        self._wait(0)
        table = {
            name: Leaf(form.shape, str(form.dtype), self._sums[name])
            for name, form in self._forms.items()
        }
        description = new_description(step, metadata, {}, table, None)
        write_text(self._path / files.METADATA / "data.json", json.dumps(seal(description)))
        # Values have the checksums of their leaves: reading all of them again would add nothing.
        write_inventory(self._path, checksums_up_to=SLICE)
        return description

    def _create(self, name: str, form: StoredForm) -> ts.Future:
        spec = _spec(self._path, name) | {
            "metadata": {
                "shape": form.shape,
                "data_type": str(form.dtype),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": form.piece}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            },
            # Otherwise a slice of zeros could not be told from a slice that is missing.
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(spec, create=True, delete_existing=True, context=self._context)

    def _wait(self, most: int) -> None:
        while self._bytes > max(0, most):
            commit, size = self._pending.popleft()
            commit.result()
            self._bytes -= size


Reads = list[tuple[tuple[slice, ...], ts.Future]]
"""A slice that is being read: where in the parameter each piece of it belongs, and the piece."""


class SliceReader:
    """Reads the parameters of a checkpoint in slices, and verifies them when all were read.

    Attributes:
      not_finite: number of such values by parameter, of the slices that were read.
    """

    def __init__(self, path: epath.Path, description: Description):
        """Opens the arrays, those of its base too.

        Args:
          path: of the checkpoint, local.
          description: its own.

        Raises:
          DamagedError: files are missing or of another size, or an array is not as described.
        """
        self._table = description.parameters
        self._sums = dict.fromkeys(self._table, 0)
        self.not_finite = collections.Counter[str]()
        self._arrays: dict[str, list[tuple[Part | None, ts.TensorStore]]] = {
            name: [] for name in self._table
        }
        split = description.split
        parts = split.parts if split else {}
        self._open(path, description.stored_parameters, parts)
        if split is not None:
            require_base(path, split)
            self._open(base_path(path, split.base), split.frozen, others(parts))

    def _open(self, path: epath.Path, table: Mapping[str, Leaf], parts: Mapping[str, Part]) -> None:
        verify_inventory(path, without=("optimizer",), sizes_only=True)
        context = _context()
        for name, leaf in table.items():
            with _damage(name):
                array = ts.open(_spec(path, name), open=True, read=True, context=context).result()
            if array.shape != leaf.shape or array.dtype.name != leaf.dtype:
                found = f"{array.dtype.name}{list(array.shape)}"
                raise DamagedError(f"{name} is stored as {found}, and described as {leaf}")
            self._arrays[name].append((parts.get(name), array))

    def start(self, name: str, index: tuple[slice, ...]) -> Reads:
        """Starts to read a slice."""
        reads: Reads = []
        for part, array in self._arrays[name]:
            if part is None:
                return [(index, array[index].read())]
            reads += [(whole, array[mine].read()) for whole, mine in part.runs(index)]
        return reads

    def finish(self, name: str, index: tuple[slice, ...], pending: Reads) -> np.ndarray:
        """Returns a slice whose reading was started, and adds it to the leaf's checksum.

        Raises:
          DamagedError: it cannot be read.
        """
        leaf = self._table[name]
        values = np.empty([s.stop - s.start for s in index], jnp.dtype(leaf.dtype))
        for place, future in pending:
            with _damage(name):
                piece = np.asarray(future.result()).reshape([s.stop - s.start for s in place])
            summary = slice_summary(piece, [s.start for s in place], leaf.shape)
            self._sums[name] = (self._sums[name] + summary.checksum) % 2**32
            self.not_finite[name] += summary.not_finite
            if place == index:
                return piece
            pairs = zip(place, index, strict=True)
            values[tuple(slice(p.start - i.start, p.stop - i.start) for p, i in pairs)] = piece
        return values

    def verify(self) -> None:
        """Compares the checksums, after every value was read exactly once.

        Raises:
          DamagedError: names every parameter that is not what was written.
        """
        wrong = [name for name, leaf in self._table.items() if self._sums[name] != leaf.checksum]
        if wrong:
            raise DamagedError(f"parameters do not agree with their checksums: {listed(wrong)}")


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turns what TensorStore raises at damaged files into `DamagedError`."""
    try:
        yield
    except (ValueError, KeyError, IndexError, RuntimeError) as error:
        raise DamagedError(f"{name}: {files.first_line(error)}") from error


def _context() -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def _spec(path: epath.Path, name: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{plain_path(path) / 'parameters'}/"},
            "path": f"{name}/",
            "target_data_file_size": _DATA_FILE,
        },
    }
