"""Directories as Hugging Face lays them out, opened as sources of an import.

Such a directory has `config.json`, weights in one file or in shards, and perhaps a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modbrick.convert.containers.torch_pickle import read_torch_file
from modbrick.convert.huggingface.shards import INDEX, Reader, read_shards
from modbrick.convert.source import LARGEST_TOKENIZER_FILE, Source
from modbrick.errors import InputError
from modbrick.formats.safetensors import read_safetensors
from modbrick.formats.strict_json import read_object

WEIGHTS: Mapping[str, Reader] = {
    "model.safetensors": read_safetensors,
    INDEX: read_safetensors,
    "pytorch_model.bin": read_torch_file,
    "pytorch_model.bin.index.json": read_torch_file,
}
"""Files in which weights are looked for, the preferred one first, as `transformers` does."""

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
"""Files that come along with the weights, byte for byte."""


def open_directory(directory: Path) -> Source:
    """Reads the configuration and the headers of the weights; no weights yet.

    Args:
      directory: on a local disk, for files are memory-mapped. Links to files are followed (the
        cache of the Hugging Face hub consists of them), but an index names files of this directory
        and of those below it only.

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
                read_shards(path, reader) if path.suffix == ".json" else reader(path),
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
