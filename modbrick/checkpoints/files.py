"""One checkpoint on disk: the only place that talks to Orbax.

A checkpoint is a directory that Orbax writes under a temporary name and renames when it is complete
(on object stores: marks by a file). In it lie `parameters` (nested), `optimizer` (its leaves by
name) and `metadata` (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from modbrick.checkpoints.directory import write_text
from modbrick.checkpoints.integrity import verify_inventory, write_inventory
from modbrick.checkpoints.leaves import Leaf, as_array, checksums, is_key, named_leaves, stored
from modbrick.checkpoints.metadata import (
    DamagedError,
    Description,
    Metadata,
    new_description,
    seal,
    unseal,
)
from modbrick.errors import InputError
from modbrick.parallel.processes import everywhere
from modbrick.parameters import nest

METADATA = "metadata"
LARGEST_PIECE = 64 << 20
"""Bytes above which an array is stored in pieces."""
# What reading damaged files was seen to raise: missing and truncated files, flipped bits, text that
# is no JSON. Lack of memory and permissions are no damage and pass through.
_READING = (ValueError, KeyError, TypeError, IndexError, OSError, RuntimeError, AssertionError)
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError, InputError)


def start_writing(
    path: epath.Path,
    step: int,
    parameters: Any,
    optimizer: Any | None,
    metadata: Metadata,
    metrics: Mapping[str, float],
) -> Callable[[], None]:
    """Copies the arrays and starts to write them in the background.

    Args:
      path: of the new checkpoint.
      step: optimizer steps done.
      parameters: nested, whole.
      optimizer: any tree of arrays; None: saved without.
      metadata: of the caller.
      metrics: measured at this step.

    Returns:
      A function that returns when the checkpoint is complete, or raises what went wrong.
    """
    arrays: dict[str, dict[str, jax.Array]] = {}
    tables: dict[str, dict[str, Leaf] | None] = {}
    for part, tree in (("parameters", parameters), ("optimizer", optimizer)):
        if tree is None:
            tables[part] = None
            continue
        arrays[part] = {n: as_array(f"{part}.{n}", x) for n, x in named_leaves(tree).items()}
        sums = checksums(arrays[part])
        tables[part] = {
            name: Leaf(tuple(x.shape), str(x.dtype), sums[name]) for name, x in arrays[part].items()
        }
    description = new_description(
        step, metadata, metrics, tables["parameters"] or {}, tables["optimizer"]
    )
    items = _as_items({part: jax.tree.map(stored, named) for part, named in arrays.items()})
    items[METADATA] = seal(description)
    with _context():
        response = ocp.save_checkpointables_async(path, items)

    def result() -> None:
        response.result()
        if jax.process_index() == 0:
            write_inventory(path)

    return result


def write_structure(path: epath.Path, pieces: Mapping[str, tuple[int, ...]]) -> None:
    """Writes a checkpoint in which every parameter is one zero, for `slices.py` to replace.

    Args:
      path: of the new checkpoint, local.
      pieces: shape of the pieces in which each parameter is going to be written, by dotted path.

    Raises:
      OSError, ValueError: it cannot be written.
    """
    zeros = {name: np.zeros((1,) * len(shape), np.float32) for name, shape in pieces.items()}
    items = _as_items({"parameters": jax.tree.map(jnp.asarray, zeros)})
    items[METADATA] = {}
    with _context():
        ocp.save_checkpointables(path, items)
    # What Orbax notes of the way in which arrays were written.
    tree = path / "parameters" / "_METADATA"
    data = json.loads(tree.read_text())
    for entry in data["tree_metadata"].values():
        name = ".".join(key["key"] for key in entry["key_metadata"])
        entry["value_metadata"]["write_shape"] = pieces[name]
    write_text(tree, json.dumps(data))
    for file in (path / "parameters" / "array_metadatas").iterdir():
        data = json.loads(file.read_text())
        for entry in data["array_metadatas"]:
            array = entry["array_metadata"]
            array["write_shape"] = array["chunk_shape"] = pieces[array["param_name"]]
        write_text(file, json.dumps(data))


def read_description(path: epath.Path) -> Description:
    """Reads what a checkpoint says about itself, no arrays.

    Raises:
      DamagedError: it cannot be read, or is not what was written.
      InputError: it has another format.
    """
    file = path / METADATA / "data.json"
    try:
        data = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise DamagedError(f"{METADATA}/{file.name} is missing") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise DamagedError(f"{METADATA}/{file.name} is unreadable") from error
    return unseal(data, str(path))


def read_arrays(
    path: epath.Path,
    description: Description,
    targets: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]],
) -> dict[str, dict[str, jax.Array]]:
    """Reads `parameters`, `optimizer` or both into the given shardings, and verifies every value.

    Args:
      path: of the checkpoint.
      description: its own.
      targets: by part, then by name: leaves with their stored shape and dtype, and a sharding. Of a
        part that lacks leaves only those asked for are read.

    Raises:
      DamagedError: something cannot be read, or is not what was written.
    """
    without = () if "optimizer" in targets else ("optimizer",)
    share = (jax.process_index(), jax.process_count())
    partial = any(len(leaves) < len(getattr(description, part)) for part, leaves in targets.items())
    everywhere(
        lambda: verify_inventory(path, without=without, sizes_only=partial, share=share),
        DamagedError,
    )
    wanted = _as_items(
        {part: jax.tree.map(_stored_target, dict(leaves)) for part, leaves in targets.items()}
    )
    loaded = _load(path, wanted, partial=partial) if wanted else {}
    result: dict[str, dict[str, jax.Array]] = {}
    for part, leaves in targets.items():
        table: Mapping[str, Leaf] = getattr(description, part)
        found = named_leaves(loaded.get(part, {}))
        wrong = [n for n, value in checksums(found).items() if value != table[n].checksum]
        if wrong:
            raise DamagedError(f"{part} do not agree with their checksums: {', '.join(wrong)}")
        result[part] = {name: _restored(found.get(name), leaf) for name, leaf in leaves.items()}
    return result


def _load(path: epath.Path, items: dict[str, Any], *, partial: bool) -> dict[str, Any]:
    context = _context()
    context.pytree.loading.partial_load = partial
    try:
        with context:
            return ocp.load_checkpointables(path, items)
    except _NOT_DAMAGE:
        raise
    except _READING as error:
        raise DamagedError(f"{type(error).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, not too long."""
    lines = str(error).strip(" '\"\n").splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 300 else lines[0][:297] + "..."


def _context() -> ocp.Context:
    context = ocp.Context()
    registry = ocp.handlers.local_registry()
    # By its content alone it would be taken for a tree of arrays.
    registry.add(ocp.handlers.JsonHandler, checkpointable_name=METADATA)
    context.checkpointables.registry = registry
    # Weights hardly compress: 8 % of the size for a third of the time a save takes.
    context.array.saving.use_compression = False
    context.array.saving.scoped_storage_options_creator = _storage
    # In the background they would leave threads waiting for minutes when a save fails at its start.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _storage(path: Any, leaf: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions:
    """Divides large stacks by layers, then by experts, so that slices of them can be read.

    Orbax stores an array that one device holds in one piece, which is read whole or not at all.
    """
    del path
    options, size = ocp.options.ArrayOptions.Saving.StorageOptions(), leaf.nbytes
    if size <= LARGEST_PIECE:
        return options
    if leaf.ndim > 2:
        options.shard_axes = (0,) if size // leaf.shape[0] <= LARGEST_PIECE else (0, 1)
    options.chunk_byte_size = LARGEST_PIECE
    return options


def _as_items(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns named leaves as they are stored: parameters nested, an optimizer's side by side.

    Orbax refuses arrays without values and trees without leaves: they are left out, and made anew.
    """
    filled = {
        part: {name: x for name, x in named.items() if 0 not in x.shape}
        for part, named in parts.items()
    }
    return {
        part: nest(named) if part == "parameters" else named
        for part, named in filled.items()
        if named
    }


def _restored(found: jax.Array | None, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a leaf as it was, from what was stored."""
    if found is None:
        return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return jax.random.wrap_key_data(found, impl=_key_kind(leaf)) if is_key(leaf) else found


def _stored_target(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not is_key(leaf):
        return leaf
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _key_kind(leaf: jax.ShapeDtypeStruct) -> Any:
    """Returns the generator that keys are of; jax tells it of arrays only, traced ones included."""
    kinds: list[Any] = []
    jax.eval_shape(lambda keys: kinds.append(jax.random.key_impl(keys)), leaf)
    return kinds[0]
