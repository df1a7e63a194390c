"""Writing safetensors: what goes into which file, and the files, value by value.

Layout as in `safetensors.py`; names of files and the index as the Hugging Face libraries write and
read them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from modbrick.formats.safetensors import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


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


class SafetensorsWriter:
    """A safetensors file whose tensors are written one after the other, in pieces."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorSpec]):
        """Writes the header.

        Args:
          path: of the file; it must not exist.
          tensors: by name, in the order in which they are going to be written.
        """
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, spec in tensors.items():
            header[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            position += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # values begin at a multiple of eight bytes
        self._file = path.open("xb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._left = position

    def write(self, values: np.ndarray) -> None:
        """Writes the next values, in C order."""
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._left -= len(content)
        self._file.write(content.data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._left:
                    raise ValueError(f"{self._left} bytes of tensors were announced, not written")
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
