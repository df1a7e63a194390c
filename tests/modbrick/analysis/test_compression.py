"""Sizes of documents under gzip."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from modbrick.analysis.compression import compare_with_gzip, gzip_bits_per_byte
from tests.modbrick.data.conftest import write_dataset

TEXTS = ["say it again, " * 20, "Grüße, 日本"]


def test_each_document_is_compressed_by_itself(tmp_path: Path) -> None:
    texts = {"prose": TEXTS}
    dataset = write_dataset(tmp_path / "data", {"train": texts, "held_out": texts})
    bits, size = gzip_bits_per_byte(dataset)
    assert size == sum(len(text.encode()) for text in TEXTS)
    compressed = sum(len(gzip.compress(t.encode(), compresslevel=9, mtime=0)) for t in TEXTS)
    assert bits == pytest.approx(8 * compressed / size)


def test_a_model_is_better_if_it_needs_fewer_bits(tmp_path: Path) -> None:
    texts = {"prose": TEXTS}
    dataset = write_dataset(tmp_path / "data", {"train": texts, "held_out": texts})
    bits, size = gzip_bits_per_byte(dataset)
    for factor, verdict in ((0.9, "is better"), (1.0, "is not better yet")):
        result = {"bits_per_byte": factor * bits, "perplexity": 3.5, "documents": 2}
        compared = compare_with_gzip(result, dataset)
        assert compared.gzip_bits_per_byte == bits
        ours, theirs = compared.lines()
        assert f"{factor * bits:.3f} bits per byte, perplexity 3.50 per token" in ours
        assert f"{bits:.3f} bits per byte on the same 2 files ({size:,} bytes)" in theirs
        assert theirs.endswith(verdict)
