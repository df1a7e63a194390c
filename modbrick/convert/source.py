"""Source of an import: a config, tensors by name, and perhaps a tokenizer, wherever they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from modbrick.formats.stored_tensor import StoredTensor

LARGEST_TOKENIZER_FILE = 128 << 20
"""Bytes."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of one model, none of whose weights is read yet.

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
