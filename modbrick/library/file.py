"""A brick as one file: safetensors with the manifest in its header."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from etils import epath

from modbrick.bricks.brick import Brick
from modbrick.checkpoints.leaves import Leaf, checksums
from modbrick.checkpoints.metadata import model_fingerprint
from modbrick.checkpoints.workdir.directory import as_path, is_local
from modbrick.errors import InputError, listed
from modbrick.formats.safetensors import SafetensorsWriter, TensorSpec, read_with_metadata
from modbrick.formats.stored_tensor import StoredTensor
from modbrick.library.manifest import Manifest, read_manifest
from modbrick.staging import staged_file

HEADER = "modbrick.brick"
"""Key of the manifest among the metadata of the header."""

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(jnp.bfloat16))
"""Of the values of a brick, but for what is no floating-point number."""


@dataclasses.dataclass(frozen=True)
class StoredBrick:
    """A brick in a file; its values are read when they are asked for.

    Attributes:
      path: of the file.
      manifest: what it says about itself.
      tensors: by address, not read yet; of the names, shapes and dtypes that the manifest implies.
    """

    path: epath.Path
    manifest: Manifest
    tensors: Mapping[str, StoredTensor]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self) -> Brick:
        """Returns the brick with its values.

        Raises:
          InputError: the file is damaged, or holds infinities, NaN or indices of nothing.
        """
        values = {address: np.array(tensor.read()) for address, tensor in self.tensors.items()}
        _require(self.path, _flaws(self.manifest, values))
        return Brick(self.manifest.brick, values)

    def fingerprint(self) -> str:
        """Returns a digest of its values, which it reads, and of their addresses.

        Raises:
          InputError: as `read`.
        """
        values = dict(sorted(self.read().values.items()))
        sums = checksums({address: jnp.asarray(value) for address, value in values.items()})
        leaves = {
            address: Leaf(value.shape, str(value.dtype), sums[address])
            for address, value in values.items()
        }
        return model_fingerprint(leaves)


def open_brick(path: epath.PathLike) -> StoredBrick:
    """Opens the file of a brick, local or remote; reads its header only.

    Raises:
      InputError: no file of a brick, one of a newer format or of an unknown kind, or one whose
        tensors are not those of its manifest: every mismatch is named.
    """
    file = as_path(path)
    tensors, metadata = read_with_metadata(file)
    if HEADER not in metadata:
        raise InputError(f"{file}: is no file of a brick, its header has no manifest")
    manifest = read_manifest(metadata[HEADER], f"{file}: manifest")
    specs = {name: TensorSpec(t.shape, t.dtype) for name, t in tensors.items()}
    _require(file, _mismatches(manifest, specs))
    return StoredBrick(file, manifest, tensors)


def read_brick(path: epath.PathLike) -> tuple[Brick, Manifest]:
    """Reads the file of a brick, local or remote.

    Raises:
      InputError: as `open_brick` and `StoredBrick.read`.
    """
    stored = open_brick(path)
    return stored.read(), stored.manifest


def write_brick(path: epath.PathLike, brick: Brick, manifest: Manifest) -> None:
    """Writes a brick as a file, which appears whole or not at all.

    Args:
      path: of a file that is not there yet; local or remote.
      brick: with the values that the manifest implies.
      manifest: what the file says about it.

    Raises:
      InputError: the file is there already or cannot be written; or the brick is not what the
        manifest says, or its values are none: every mismatch is named.
    """
    file = as_path(path)
    assert manifest.brick == brick.config, "a manifest of another brick"
    values = {address: np.asarray(brick.values[address]) for address in sorted(brick.values)}
    specs = {address: TensorSpec(value.shape, value.dtype) for address, value in values.items()}
    _require(file, _mismatches(manifest, specs) or _flaws(manifest, values))

    def write(local: Path) -> None:
        with SafetensorsWriter(local, specs, {HEADER: manifest.to_json()}) as writer:
            for value in values.values():
                writer.write(value)

    if is_local(file):
        with staged_file(Path(file)) as unfinished:
            write(unfinished)
        return
    if file.exists():
        raise InputError(f"{file} is there already: name a new file")
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "brick"
        write(copy)
        file.write_bytes(copy.read_bytes())


def _mismatches(manifest: Manifest, found: Mapping[str, TensorSpec]) -> list[str]:
    """Lists how tensors differ from those that a manifest implies, each by name."""
    wanted = manifest.leaves()
    remarks = [f"missing: {address}" for address in wanted if address not in found]
    remarks += [f"unexpected: {address}" for address in found if address not in wanted]
    for address, info in wanted.items():
        if address in found and found[address].shape != info.shape:
            shape = list(found[address].shape)
            remarks.append(f"{address}: has shape {shape}, the manifest says {list(info.shape)}")
    for address, spec in found.items():
        dtype = wanted[address].dtype if address in wanted else "float32"
        known = DTYPES if dtype == "float32" else (np.dtype(dtype),)
        if spec.dtype not in known:
            names = ", ".join(str(dtype) for dtype in known)
            remarks.append(f"{address}: is of {spec.dtype}, not one of {names}")
    return remarks


def _flaws(manifest: Manifest, values: Mapping[str, np.ndarray]) -> list[str]:
    """Lists what is wrong with values of the right shapes, each by name."""
    flaws = {address: info.flaw(values[address]) for address, info in manifest.leaves().items()}
    return [f"{address}: {flaw}" for address, flaw in flaws.items() if flaw]


def _require(path: epath.Path, remarks: list[str]) -> None:
    if remarks:
        raise InputError(f"{path}: {listed(remarks, '; ')}")
