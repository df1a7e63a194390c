"""Models from and to checkpoints, without a run: load, describe, save."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.typing import DTypeLike

from modbrick.checkpoints import files
from modbrick.checkpoints.leaves import Leaf, mismatches, named_arrays, named_leaves, table_of
from modbrick.checkpoints.metadata import DamagedError, Description, Metadata, new_description
from modbrick.checkpoints.reading import Wanted, read_parameters, verify_checkpoint
from modbrick.checkpoints.workdir.directory import (
    CHECKPOINTS,
    as_path,
    complete_steps,
    require_own,
    write_text,
)
from modbrick.config import ModelConfig
from modbrick.errors import InputError, listed

TOKENIZER = "tokenizer"

Dtypes = jax.typing.DTypeLike | Mapping[str, jax.typing.DTypeLike | None] | None
"""One for all, or by path; None: as stored."""


def locate(directory: epath.PathLike, step: int | None = None) -> epath.Path:
    """Finds a checkpoint.

    Args:
      directory: a run's or model's directory, its `checkpoints`, or a single checkpoint.
      step: which one; None: the newest complete one.

    Raises:
      InputError: there is none; lists the steps that there are.
    """
    path = as_path(directory)
    root = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    steps = complete_steps(root)
    if not steps and (path / files.METADATA).is_dir():
        if step is not None and path.name != str(step):
            raise InputError(f"{path} is the checkpoint of step {path.name}, not {step}")
        return path
    if not steps:
        raise InputError(f"no checkpoint in {path}: name a run's directory or a checkpoint")
    if step is not None and step not in steps:
        raise InputError(f"no checkpoint of step {step} in {root}: there are {steps}")
    return root / str(steps[-1] if step is None else step)


def describe(directory: epath.PathLike, step: int | None = None) -> Description:
    """Returns what a checkpoint says about itself, without reading any array.

    Args:
      directory: as for `locate`.
      step: as for `locate`.

    Raises:
      InputError: there is none, or it is damaged or of another format.
    """
    path = locate(directory, step)
    try:
        return files.read_description(path)
    except DamagedError as error:
        raise _damaged(path, error) from error


def load_checkpoint(
    directory: epath.PathLike,
    step: int | None = None,
    *,
    config: ModelConfig | None = None,
    paths: Collection[str] | None = None,
    dtype: Dtypes = None,
    shardings: jax.sharding.Sharding | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Description]:
    """Loads a model's parameters, every value verified.

    Args:
      directory: as for `locate`.
      step: as for `locate`.
      config: the model that the parameters must fit; None: the checkpoint's own.
      paths: of the parameters to read; None: all.
      dtype: of the returned parameters (`bfloat16`), one for all or by path; None: as stored.
      shardings: one for all, or by path; None: the first device.

    Returns:
      The parameters by path, and the checkpoint's description.

    Raises:
      InputError: there is none, it is damaged or of another format, or it does not fit the config
        (lists every parameter that is missing, unexpected or of another shape).

    Examples:
        >>> from modbrick.checkpoints import load_checkpoint
        >>> parameters, description = load_checkpoint("run")
        >>> parameters["embedding"].shape, description.step
        ((256, 16), 0)
    """
    path = locate(directory, step)
    try:
        description = files.read_description(path)
        model = config or description.metadata.model
        wanted = _wanted(description, model, paths, dtype, shardings)
        remarks = Wanted({}, wanted).mismatches(description.parameters)
        if remarks:
            raise InputError(f"{path} does not fit the model: {listed(remarks, '; ')}")
        if paths is not None:
            wanted = {name: leaf for name, leaf in wanted.items() if name in paths}
        verify_checkpoint(path, description, optimizer=False, sizes_only=paths is not None)
        arrays, _ = read_parameters(path, description, Wanted(wanted))
    except DamagedError as error:
        raise _damaged(path, error) from error
    return arrays, description


def save_model(
    directory: epath.PathLike,
    parameters: Mapping[str, Any],
    metadata: Metadata,
    *,
    tokenizer: str | None = None,
    step: int = 0,
    dtypes: Mapping[str, DTypeLike] = types.MappingProxyType({}),
) -> epath.Path:
    """Writes a model without optimizer, in a directory laid out like a run's.

    It appears as a whole: until the last byte is written, loading says that there is no checkpoint.

    Args:
      directory: new or empty.
      parameters: whole, by path.
      metadata: what to say about it, the model's config among it.
      tokenizer: text of the `tokenizer.json`.
      step: optimizer steps that made it.
      dtypes: of parameters that are not as the table says, by path.

    Returns:
      The path of the checkpoint.

    Raises:
      InputError: the directory holds something, the parameters do not fit the config (lists every
        one), or writing fails.

    Examples:
        >>> import modbrick
        >>> from modbrick.checkpoints import Metadata, load_checkpoint
        >>> parameters, description = load_checkpoint("run")
        >>> path = modbrick.save_model("copy", parameters, Metadata(description.metadata.model))
        >>> modbrick.load_model("copy").config == description.metadata.model
        True
    """
    target = as_path(directory)
    require_own(target)
    if complete_steps(target / CHECKPOINTS):
        raise InputError(f"{target} holds a model already: name a new or empty directory")
    saved = {
        name: Leaf(tuple(value.shape), str(value.dtype), 0)
        for name, value in named_leaves(parameters).items()
    }
    remarks = mismatches(saved, metadata.table().abstract(dtypes))
    if remarks:
        raise InputError(f"the parameters do not fit the model: {listed(remarks, '; ')}")
    path = target / CHECKPOINTS / str(step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if tokenizer is not None:
            save_tokenizer(target, tokenizer)
        arrays = named_arrays(parameters, "parameters")
        description = new_description(step, metadata, {}, table_of(arrays), None)
        files.start_writing(path, description, {"parameters": arrays})()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the model could not be written to {target} ({files.first_line(error)})"
        ) from error
    return path


def save_tokenizer(directory: epath.PathLike, text: str) -> None:
    """Writes a tokenizer's `tokenizer.json` into a run's or model's directory."""
    path = as_path(directory) / TOKENIZER / "tokenizer.json"
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def tokenizer_file(directory: epath.PathLike) -> epath.Path:
    """Finds the `tokenizer.json` that belongs to a checkpoint.

    Args:
      directory: as for `locate`.

    Raises:
      InputError: there is none.
    """
    path = as_path(directory)
    candidates = [place / TOKENIZER / "tokenizer.json" for place in (path, *list(path.parents)[:2])]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise InputError(f"{path} has no tokenizer: there is no {TOKENIZER}/tokenizer.json in it")


def _wanted(
    description: Description,
    config: ModelConfig,
    paths: Collection[str] | None,
    dtype: Dtypes,
    shardings: jax.sharding.Sharding | Mapping[str, Any] | None,
) -> dict[str, jax.ShapeDtypeStruct]:
    if shardings is None:
        shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    by_name = None if isinstance(shardings, jax.sharding.Sharding) else named_leaves(shardings)
    wanted = {}
    for info in description.metadata.table(config):
        saved = description.parameters.get(info.path)
        asked = dtype.get(info.path) if isinstance(dtype, Mapping) else dtype
        stored = jnp.dtype(saved.dtype if saved else info.dtype)
        castable = jnp.issubdtype(stored, jnp.floating)
        of_leaf = stored if asked is None or not castable else jnp.dtype(asked)
        read = paths is None or info.path in paths
        sharding = shardings if by_name is None else by_name[info.path] if read else None
        wanted[info.path] = jax.ShapeDtypeStruct(info.shape, of_leaf, sharding=sharding)
    return wanted


def _damaged(path: epath.Path, error: DamagedError) -> InputError:
    return InputError(f"{path} is damaged ({error}): use another step, or a copy")
