"""Checkpoints read into the arrays that are asked for.

A checkpoint holds all parameters, or those that its run trains beside a base with the rest. They
may be asked for divided alike, otherwise or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from modbrick.checkpoints import files
from modbrick.checkpoints.base import base_path, require_base
from modbrick.checkpoints.inventory import verify_files
from modbrick.checkpoints.leaves import Leaf, abstract, mismatches, named_leaves
from modbrick.checkpoints.metadata import DamagedError, Description, Metadata
from modbrick.checkpoints.parts import Part, SplitParameters, join, others, take
from modbrick.errors import InputError, listed
from modbrick.parallel.processes import everywhere

Piece = tuple[str, Part | None]
"""An array: the path of its parameter, and which part of it, None being all."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Parameters that are asked for: their shapes, dtypes and shardings, by path.

    Attributes:
      trainable: of the trainable leaves; of all where nothing is frozen.
      frozen: of those that are held as they are, in whatever dtype.
      parts: what the trainable leaf holds of each bank that is in both.
    """

    trainable: Mapping[str, jax.ShapeDtypeStruct]
    frozen: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(parameters: Any) -> Wanted:
        """Returns what abstract parameters ask for; on the first device unless they say where."""
        default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def leaves(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
            return {name: abstract(leaf, default) for name, leaf in named_leaves(tree).items()}

        if not isinstance(parameters, SplitParameters):
            return Wanted(leaves(parameters))
        return Wanted(leaves(parameters.trainable), leaves(parameters.frozen), parameters.parts)

    def mismatches(self, saved: Mapping[str, Leaf]) -> list[str]:
        """Lists how saved parameters do not fit, a remark for each by path.

        Args:
          saved: every parameter, joined.
        """
        paths = {**self.frozen, **self.trainable}
        remarks = [f"missing: {path}" for path in paths if path not in saved]
        remarks += [f"unexpected: {path}" for path in saved if path not in paths]
        for path, leaf in paths.items():
            if path not in saved:
                continue
            dtype = jnp.dtype(saved[path].dtype)
            castable = path not in self.trainable and jnp.issubdtype(dtype, jnp.floating)
            shape = self.parts[path].shape if path in self.parts else leaf.shape
            wanted = Leaf(shape, str(dtype if castable else leaf.dtype), 0)
            if str(saved[path]) != str(wanted):
                remarks.append(f"{path}: saved {saved[path]}, wanted {wanted}")
        return remarks


def verify_checkpoint(
    path: epath.Path, description: Description, *, optimizer: bool, sizes_only: bool = False
) -> None:
    """Compares a checkpoint's files, and its base's, with their inventories.

    Every process makes this call, and reads its share of the files.

    Args:
      path: of the checkpoint.
      description: its own.
      optimizer: whether its optimizer's state is going to be read.
      sizes_only: only some values are going to be read, and they have checksums of their own.

    Raises:
      DamagedError: something is missing, or not what was written.
    """
    verify_files(path, optimizer=optimizer, sizes_only=sizes_only)
    if (split := description.split) is not None:
        everywhere(lambda: require_base(path, split), DamagedError)
        verify_files(base_path(path, split.base), sizes_only=sizes_only)


def read_parameters(
    path: epath.Path, description: Description, wanted: Wanted
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Reads parameters and verifies every value.

    Args:
      path: of the checkpoint, whose files are verified (`verify_checkpoint`).
      description: its own.
      wanted: what is asked for, and fits. Dtypes other than the saved ones are cast to.

    Returns:
      The trainable and the frozen arrays, by path.

    Raises:
      DamagedError: something cannot be read, or is not what was written.
    """
    trainable = _pieces(wanted.trainable, wanted.parts)
    frozen = _pieces(wanted.frozen, others(wanted.parts))
    asked = {**trainable, **frozen}
    split = description.split
    have = split.parts if split else {}
    arrays = _read(path, description.stored_parameters, have, asked)
    if split is not None:
        arrays |= _read(base_path(path, split.base), split.frozen, others(have), asked)
    for piece, leaf in asked.items():
        if piece not in arrays:
            whole = _whole(piece[0], arrays, have, _sharding_of_whole(piece, leaf))
            part = take(piece[1], whole, leaf.sharding) if piece[1] else whole
            arrays[piece] = part.astype(leaf.dtype)
    return (
        {piece[0]: arrays[piece] for piece in trainable},
        {piece[0]: arrays[piece] for piece in frozen},
    )


def _pieces[T](leaves: Mapping[str, T], parts: Mapping[str, Part]) -> dict[Piece, T]:
    return {(path, parts.get(path)): leaf for path, leaf in leaves.items()}


def _read(
    path: epath.Path,
    table: Mapping[str, Leaf],
    parts: Mapping[str, Part],
    asked: Mapping[Piece, jax.ShapeDtypeStruct],
) -> dict[Piece, jax.Array]:
    """Reads a directory: what is asked for as it is stored directly, all else to be divided."""
    shardings = {piece[0]: _sharding_of_whole(piece, leaf) for piece, leaf in asked.items()}
    targets = {}
    for piece, leaf in _pieces(table, parts).items():
        name, part = piece
        if name not in shardings:
            continue  # not asked for
        sharding = part.sharding_of_part(shardings[name]) if part else shardings[name]
        as_stored = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype), sharding=sharding)
        targets[name] = asked.get(piece, as_stored)
    found = files.read_arrays(path, "parameters", table, targets, parts)
    return _pieces(found, parts)


def _whole(
    path: str,
    arrays: Mapping[Piece, jax.Array],
    parts: Mapping[str, Part],
    sharding: jax.sharding.Sharding,
) -> jax.Array:
    if path not in parts:
        return arrays[path, None]
    part = parts[path]
    return join(part, arrays[path, part], arrays[path, part.others], sharding)


def _sharding_of_whole(piece: Piece, leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return piece[1].sharding_of_whole(leaf.sharding) if piece[1] else leaf.sharding


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint: trees as the abstract ones asked for, and what was said of them.

    Attributes:
      step: optimizer steps done.
      parameters: a tree, or `SplitParameters` if they were asked for.
      optimizer_state: a tree; None: not asked for.
      metadata: of whoever saved it.
      description: everything that it says about itself.
    """

    step: int
    parameters: Any
    optimizer_state: Any
    metadata: Metadata
    description: Description


def restore(path: epath.Path, abstract_parameters: Any, abstract_optimizer: Any) -> Restored:
    """Reads a checkpoint of a run; every process makes this call.

    Args:
      path: of the checkpoint.
      abstract_parameters: see `CheckpointStore.restore_latest`.
      abstract_optimizer: see `CheckpointStore.restore_latest`.

    Raises:
      DamagedError: something cannot be read, or is not what was written.
      InputError: it does not fit, or has another format.
    """
    description = everywhere(lambda: files.read_description(path), DamagedError)
    wanted = Wanted.of(abstract_parameters)
    optimizer = None if abstract_optimizer is None else Wanted.of(abstract_optimizer).trainable
    remarks = wanted.mismatches(description.parameters)
    if optimizer is not None:
        remarks += mismatches(description.optimizer or {}, optimizer, "optimizer.")
    if remarks:
        raise InputError(f"{path} does not fit: {listed(remarks, '; ')}")
    verify_checkpoint(path, description, optimizer=optimizer is not None)

    def read() -> tuple[Any, Any]:
        trainable, frozen = read_parameters(path, description, wanted)
        parameters: Any
        if isinstance(abstract_parameters, SplitParameters):
            parameters = dataclasses.replace(
                abstract_parameters,
                trainable=_like(abstract_parameters.trainable, trainable),
                frozen=_like(abstract_parameters.frozen, frozen),
            )
        else:
            parameters = _like(abstract_parameters, trainable)
        if optimizer is None:
            return parameters, None
        table = description.optimizer or {}
        state = files.read_arrays(path, "optimizer", table, optimizer)
        return parameters, _like(abstract_optimizer, state)

    parameters, state = everywhere(read, DamagedError)
    return Restored(description.step, parameters, state, description.metadata, description)


def _like(tree: Any, arrays: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), list(arrays.values()))
