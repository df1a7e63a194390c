"""Compression of a data set by gzip: a yardstick for bits per byte that everyone knows."""

from __future__ import annotations

import gzip

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
