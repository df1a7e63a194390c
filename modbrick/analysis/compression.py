"""Compression of a data set by gzip: a yardstick for bits per byte that everyone knows."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping
from typing import Any

from modbrick.data import Dataset
from modbrick.data.dataset import Split


def gzip_bits_per_byte(dataset: Dataset, split: Split = "held_out") -> tuple[float, int]:
    """Returns what `gzip -9` makes of each document: bits per byte, and the bytes of them all."""
    tokenizer, documents = dataset.tokenizer(), dataset.documents(split)
    compressed = size = 0
    for index in range(len(documents)):
        ids = documents.read(index, 0, int(documents.targets[index]) + 1)
        text = tokenizer.decode(ids).encode()
        compressed += len(gzip.compress(text, compresslevel=9, mtime=0))
        size += len(text)
    return 8 * compressed / size, size


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model and gzip on the same held-out documents.

    Attributes:
      model: its evaluation, as `EvaluationResult.to_mapping` has it.
      gzip_bits_per_byte: what `gzip -9` needs.
      bytes: of the documents.
    """

    model: Mapping[str, Any]
    gzip_bits_per_byte: float
    bytes: int

    def lines(self) -> tuple[str, str]:
        """Returns a line for each of the two, for people."""
        better = self.model["bits_per_byte"] < self.gzip_bits_per_byte
        return (
            f"held-out text   {self.model['bits_per_byte']:.3f} bits per byte, "
            f"perplexity {self.model['perplexity']:.2f} per token",
            f"gzip -9         {self.gzip_bits_per_byte:.3f} bits per byte on the same "
            f"{self.model['documents']} files ({self.bytes:,} bytes): "
            f"the model is {'better' if better else 'not better yet'}",
        )


def compare_with_gzip(model: Mapping[str, Any], dataset: Dataset) -> Comparison:
    """Compares an evaluation on the held-out split with what gzip makes of it."""
    return Comparison(model, *gzip_bits_per_byte(dataset))
