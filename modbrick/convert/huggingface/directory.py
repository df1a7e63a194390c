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
    "vocab.txt",
    "tokenizer.model*",
    "*.tiktoken",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
"""Patterns of files that come along with the weights, byte for byte."""


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
                tokenizer=lambda: tokenizer_files(directory),
            )
    raise InputError(f"{directory}: holds no weights; expected one of {', '.join(WEIGHTS)}")


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """Returns the content of the files in a directory that belong to its tokenizer, by name.

    Raises:
      InputError: one of them cannot be read, or is larger than any tokenizer's.
    """
    files = {}
    found = (path for pattern in TOKENIZER_FILES for path in sorted(directory.glob(pattern)))
    for path in found:
        if not path.is_file():
            continue
        if path.stat().st_size > LARGEST_TOKENIZER_FILE:
            raise InputError(f"{path}: more than {LARGEST_TOKENIZER_FILE} bytes are not read")
        try:
            files[path.relative_to(directory).as_posix()] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return files
