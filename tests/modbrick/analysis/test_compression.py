"""Sizes of documents under gzip."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from modbrick.analysis.compression import gzip_bits_per_byte
from tests.modbrick.data.conftest import write_dataset

TEXTS = ["say it again, " * 20, "Grüße, 日本"]


def test_each_document_is_compressed_by_itself(tmp_path: Path) -> None:
    texts = {"prose": TEXTS}
    dataset = write_dataset(tmp_path / "data", {"train": texts, "held_out": texts})
    bits, size = gzip_bits_per_byte(dataset)
    assert size == sum(len(text.encode()) for text in TEXTS)
    compressed = sum(len(gzip.compress(t.encode(), compresslevel=9, mtime=0)) for t in TEXTS)
    assert bits == pytest.approx(8 * compressed / size)
