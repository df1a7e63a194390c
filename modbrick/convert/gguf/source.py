"""GGUF files as sources of an import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from modbrick.convert.gguf.header import read_gguf
from modbrick.convert.gguf.llama import source_config
from modbrick.convert.gguf.tokenizer import tokenizer_files, unsupported
from modbrick.convert.gguf.values import shown
from modbrick.convert.source import LARGEST_TOKENIZER_FILE, Source
from modbrick.errors import InputError
from modbrick.formats.stored_tensor import open_file


def open_gguf(path: Path) -> Source:
    """Reads the header of a GGUF file; no weights yet.

    Its tokenizer is the one in the file or, if that is not supported, the `tokenizer.json` beside
    the file.

    Raises:
      InputError: what `read_gguf` refuses.
    """
    file = read_gguf(path)
    architecture = file.metadata.get("general.architecture")
    return Source(
        path,
        str(path),
        architecture if isinstance(architecture, str) else shown(architecture),
        source_config(file),
        file.tensors,
        container="gguf",
        tokenizer=lambda: _tokenizer(path, file.metadata),
    )


def _tokenizer(path: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    reason = unsupported(metadata)
    if reason is None:
        if metadata["tokenizer.ggml.model"] == "gpt2" and "tokenizer.ggml.pre" not in metadata:
            logging.warning(
                "%s: names no pre-tokenizer; text is split as llama.cpp does by default", path
            )
        return tokenizer_files(metadata, str(path))
    beside = path.parent / "tokenizer.json"
    if not beside.is_file():
        logging.warning("%s: no tokenizer (%s); put a tokenizer.json beside it", path, reason)
        return {}
    logging.info("%s: its tokenizer is not read (%s), but %s is", path, reason, beside)
    stored = open_file(beside)
    if len(stored) > LARGEST_TOKENIZER_FILE:
        raise InputError(f"{beside}: more than {LARGEST_TOKENIZER_FILE} bytes are not read")
    return {beside.name: stored.map().tobytes()}
