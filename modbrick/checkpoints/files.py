"""One checkpoint on disk: the only place that talks to Orbax.

A checkpoint is a directory that Orbax writes under a temporary name and renames when it is complete
(on object stores: marks by a file). In it lie `parameters` (nested), `optimizer` (its leaves by
name) and `metadata` (JSON).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from modbrick.checkpoints.inventory import write_inventory
from modbrick.checkpoints.leaves import Leaf, checksums, is_key, named_leaves, stored
from modbrick.checkpoints.metadata import DamagedError, Description, seal, unseal
from modbrick.checkpoints.parts import Part
from modbrick.checkpoints.workdir.directory import write_text
from modbrick.checkpoints.workdir.link import plain_path
from modbrick.errors import InputError, listed, reason
from modbrick.parameters import nest

METADATA = "metadata"
_orbax_log = logging.getLogger("absl")
LARGEST_PIECE = 64 << 20
"""Bytes above which an array is stored in pieces."""
LARGEST_GROUP = 1 << 30
"""Bytes of arrays that are read at a time where they are cast."""
WRITING = (OSError, ValueError, RuntimeError)
"""What failing to write was seen to raise."""
# What reading damaged files was seen to raise. Lack of memory and permissions are no damage.
_READING = (ValueError, KeyError, TypeError, IndexError, OSError, RuntimeError, AssertionError)
_NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError, InputError)


def start_writing(
    path: epath.Path,
    description: Description,
    arrays: Mapping[str, Mapping[str, jax.Array]],
) -> Callable[[], None]:
    """Copies the arrays and starts to write them in the background.

    Args:
      path: of the new checkpoint.
      description: what it says about itself.
      arrays: `parameters`, and `optimizer` if it is saved with one: leaves by name.

    Returns:
      A function that returns when the checkpoint is complete and was opened again, or raises what
      went wrong.
    """
    items = _as_items({part: jax.tree.map(stored, dict(named)) for part, named in arrays.items()})
    items[METADATA] = seal(description)
    _orbax_log.addFilter(_without_traceback)
    with _context():
        response = ocp.save_checkpointables_async(plain_path(path), items)

    def result() -> None:
        response.result()
        _orbax_log.removeFilter(_without_traceback)  # after an error, other threads follow
        if jax.process_index() == 0:
            open_again(path, description)
            write_inventory(path)

    return result


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leaves out what the threads of Orbax say of errors that its `result` raises anyway."""
    return not (record.exc_info and "orbax" in record.pathname)


def open_again(path: epath.Path, description: Description) -> None:
    """Opens a checkpoint just written: its description, and every array, values excepted.

    Raises:
      OSError: it is not there, or not what was written: whoever wrote it must not count on it.
    """
    try:
        if seal(read_description(path)) != seal(description):
            raise DamagedError("its description is not what was written")
        with _context():
            found = ocp.checkpointables_metadata(plain_path(path)).metadata
        tables = {
            "parameters": description.stored_parameters,
            "optimizer": description.optimizer or {},
        }
        for part, table in tables.items():
            arrays = named_leaves(found.get(part) or {})
            missing = [n for n, x in table.items() if 0 not in x.shape and n not in arrays]
            if missing:
                raise DamagedError(f"{part} are missing: {listed(missing)}")
    except (DamagedError, *_READING) as error:
        raise OSError(f"it cannot be opened again: {first_line(error)}") from error


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
        ocp.save_checkpointables(plain_path(path), items)
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
    part: str,
    table: Mapping[str, Leaf],
    targets: Mapping[str, jax.ShapeDtypeStruct],
    parts: Mapping[str, Part] | None = None,
) -> dict[str, jax.Array]:
    """Reads `parameters` or `optimizer` into the given shardings, and verifies every value.

    Where dtypes differ from the stored ones, some leaves at a time are read and cast, so that few
    exist in both.

    Args:
      path: of the checkpoint.
      part: `parameters` or `optimizer`.
      table: every stored leaf, by name.
      targets: for those that are read the stored shape, a dtype, and a sharding.
      parts: as for `checksums`.

    Raises:
      DamagedError: something cannot be read, or is not what was written.
    """
    cast = any(str(leaf.dtype) != table[name].dtype for name, leaf in targets.items())
    partial = cast or len(targets) < len(table)
    result: dict[str, jax.Array] = {}
    for names in _groups(table, targets) if cast else [list(targets)]:
        wanted = {
            name: _stored_target(targets[name], None if not cast else table[name].dtype)
            for name in names
        }
        items = _as_items({part: wanted})
        loaded = named_leaves(_load(path, items, partial=partial)[part]) if items else {}
        sums = checksums(loaded, parts)
        wrong = [name for name, value in sums.items() if value != table[name].checksum]
        if wrong:
            raise DamagedError(f"{part} do not agree with their checksums: {listed(wrong)}")
        for name in names:
            restored = _restored(loaded.pop(name, None), targets[name])
            result[name] = restored.astype(targets[name].dtype) if cast else restored
    return result


def _groups(
    table: Mapping[str, Leaf], targets: Mapping[str, jax.ShapeDtypeStruct]
) -> Iterator[list[str]]:
    """Yields the names in groups of about `LARGEST_GROUP` bytes."""
    group: list[str] = []
    size = 0
    for name in targets:
        if group and size + table[name].bytes > LARGEST_GROUP:
            yield group
            group, size = [], 0
        group.append(name)
        size += table[name].bytes
    if group:
        yield group


def _load(path: epath.Path, items: dict[str, Any], *, partial: bool) -> dict[str, Any]:
    try:
        context = _context()
        context.pytree.loading.partial_load = partial
        with context:
            return ocp.load_checkpointables(plain_path(path), items)
    except _NOT_DAMAGE:
        raise
    except _READING as error:
        raise DamagedError(f"{type(error).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, not too long."""
    lines = reason(error).strip(" '\"\n").splitlines() or [type(error).__name__]
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


def _stored_target(leaf: jax.ShapeDtypeStruct, dtype: str | None) -> jax.ShapeDtypeStruct:
    """Returns what is read for a leaf: of its own dtype, unless it is another that is stored."""
    if not is_key(leaf):
        return leaf if dtype is None else leaf.update(dtype=jnp.dtype(dtype))
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _key_kind(leaf: jax.ShapeDtypeStruct) -> Any:
    """Returns the generator that keys are of; jax knows it of arrays only, traced ones included."""
    kinds: list[Any] = []
    jax.eval_shape(lambda keys: kinds.append(jax.random.key_impl(keys)), leaf)
    return kinds[0]
