"""Weights in several files: which tensor goes into which, and the index that says so.

Names of files and the index as the Hugging Face libraries write and read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from modbrick.convert.huggingface.buffers import ROTARY_BUFFERS
from modbrick.errors import InputError, listed
from modbrick.formats.safetensors import TensorSpec
from modbrick.formats.stored_tensor import StoredTensor
from modbrick.formats.strict_json import read_object

Reader = Callable[[Path], dict[str, StoredTensor]]

INDEX = "model.safetensors.index.json"

METADATA = {"format": "pt"}
"""Of every file; the libraries ask for it."""


def divide(tensors: Mapping[str, TensorSpec], largest: int) -> dict[str, list[str]]:
    """Divides tensors into files.

    Args:
      tensors: by name, in the order in which they are going to be written.
      largest: bytes of values in a file; a tensor that is larger has a file of its own.

    Returns:
      The names of each file's tensors, by the name of the file.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name, spec in tensors.items():
        if groups[-1] and size + spec.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": group
        for number, group in enumerate(groups, 1)
    }


def index_text(tensors: Mapping[str, TensorSpec], files: Mapping[str, list[str]]) -> str:
    """Returns the text of the index that says which tensor is in which file."""
    data = {
        "metadata": {"total_size": sum(spec.nbytes for spec in tensors.values())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def read_shards(index: Path, reader: Reader) -> dict[str, StoredTensor]:
    """Returns the tensors of all shards, after comparing each shard with the index.

    Args:
      index: path of the index.
      reader: of one shard.

    Raises:
      InputError: a shard that is missing, or holds other tensors than the index says (buffers of
        which nobody asks aside); what the reader refuses.
    """
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map")
    for name, file in places.items():
        if not isinstance(file, str) or not _is_below(file):
            raise InputError(
                f"{index}: places {name!r} in {file!r}, which is no file name below the index"
            )
    files = sorted(set(places.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise InputError(f"{index}: shards are missing: {listed(missing)}")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        shard = reader(index.parent / file)
        expected = {name for name, place in places.items() if place == file}
        differing = {name for name in shard.keys() ^ expected if not ROTARY_BUFFERS.fullmatch(name)}
        if differing:
            lacking, beyond = sorted(differing & expected), sorted(differing - expected)
            problems = [
                *([f"lacks {listed(lacking)}"] if lacking else []),
                *([f"holds {listed(beyond)} besides"] if beyond else []),
            ]
            raise InputError(f"{index}: the shard {file} {' and '.join(problems)}")
        tensors |= shard
    return tensors


def _is_below(file: str) -> bool:
    """Returns whether a name is that of a file in the same directory or below it, on any system."""
    parts = PurePosixPath(file).parts
    return bool(parts) and not {"/", ".."} & set(parts) and not set(file) & set("\\:\0")
