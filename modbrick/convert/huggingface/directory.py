"""Sources: what is to be imported. Directories as Hugging Face lays them out, for one.

Such a directory has `config.json`, weights in one file or in shards, and perhaps a tokenizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from modbrick.convert.containers.torch_pickle import read_torch_file
from modbrick.errors import InputError
from modbrick.formats.safetensors import read_safetensors
from modbrick.formats.stored_tensor import StoredTensor
from modbrick.formats.strict_json import read_object

Reader = Callable[[Path], dict[str, StoredTensor]]

WEIGHTS: Mapping[str, Reader] = {
    "model.safetensors": read_safetensors,
    "model.safetensors.index.json": read_safetensors,
    "pytorch_model.bin": read_torch_file,
    "pytorch_model.bin.index.json": read_torch_file,
}
"""Where weights are looked for, the preferred place first, as `transformers` does."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
"""What comes along with the weights, byte for byte."""

LARGEST_TOKENIZER_FILE = 128 << 20


@dataclasses.dataclass(frozen=True)
class Source:
    """What is to be imported.

    Attributes:
      path: the directory or file.
      where: of the config, for messages.
      model_type: by which the format is recognised; whatever stands there, of any type.
      config: as it is written there (of a GGUF: the metadata).
      tensors: by name.
      container: what kind of source it is.
      tokenizer: returns the tokenizer's files by name, `tokenizer.json` among them if there is a
        tokenizer. It raises `InputError` if they cannot be read.
    """

    path: Path
    where: str
    model_type: Any
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    container: Literal["directory", "gguf"] = "directory"
    tokenizer: Callable[[], dict[str, bytes]] = dict


def open_directory(directory: Path) -> Source:
    """Reads the configuration and the headers of the weights; no weights yet.

    Args:
      directory: on a local disk, for files are memory-mapped. Links to files are followed (the
        cache of the Hugging Face hub consists of them), but an index names files of this directory
        only.

    Raises:
      InputError: anything that is missing, damaged, contradictory or named twice.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    config = read_object(directory / "config.json")
    for name, reader in WEIGHTS.items():
        path = directory / name
        if path.is_file():
            return Source(
                directory,
                str(directory / "config.json"),
                config.get("model_type"),
                config,
                _sharded(path, reader) if path.suffix == ".json" else reader(path),
                tokenizer=lambda: _tokenizer(directory),
            )
    raise InputError(f"{directory}: holds no weights; expected one of {', '.join(WEIGHTS)}")


def _tokenizer(directory: Path) -> dict[str, bytes]:
    files = {}
    for name in TOKENIZER_FILES:
        path = directory / name
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST_TOKENIZER_FILE:
            raise InputError(f"{path}: more than {LARGEST_TOKENIZER_FILE} bytes are not read")
        try:
            files[name] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return files


def _sharded(index: Path, reader: Reader) -> dict[str, StoredTensor]:
    """Returns the tensors of all shards, after comparing each shard with the index."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map")
    for name, file in places.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise InputError(f"{index}: places {name!r} in {file!r}, which is no file name")
    files = sorted(set(places.values()))
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise InputError(f"{index}: shards are missing: {', '.join(missing)}")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        shard = reader(index.parent / file)
        expected = {name for name, place in places.items() if place == file}
        if shard.keys() != expected:
            lacking, beyond = sorted(expected - shard.keys()), sorted(shard.keys() - expected)
            problems = [
                *([f"lacks {', '.join(lacking)}"] if lacking else []),
                *([f"holds {', '.join(beyond)} besides"] if beyond else []),
            ]
            raise InputError(f"{index}: the shard {file} {' and '.join(problems)}")
        tensors |= shard
    return tensors


def _is_plain(file: str) -> bool:
    """Whether a name is that of a file in the same directory, on any system."""
    return bool(file) and file not in (".", "..") and not set(file) & set("/\\:\0")
