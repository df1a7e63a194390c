"""Weights in several files, as the Hugging Face libraries name them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from modbrick.convert.huggingface.shards import divide, index_text
from modbrick.formats.safetensors import TensorSpec

SPECS = {
    "a": TensorSpec((3, 4), np.dtype(np.float32)),
    "b": TensorSpec((5,), np.dtype(np.float16)),
    "scalar": TensorSpec((), np.dtype(np.float16)),
    "c.ä": TensorSpec((1, 6), np.dtype(np.float16)),
}


@pytest.mark.parametrize("largest", [1, 50, 60, 10**9])
def test_tensors_are_divided_in_order(largest: int) -> None:
    files = divide(SPECS, largest)
    assert [name for names in files.values() for name in names] == list(SPECS)
    for names in files.values():
        assert len(names) == 1 or sum(SPECS[name].nbytes for name in names) <= largest
    count = len(files)
    if count == 1:
        assert list(files) == ["model.safetensors"]
    else:
        expected = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        assert list(files) == expected
    index = json.loads(index_text(SPECS, files))
    assert index["metadata"]["total_size"] == sum(spec.nbytes for spec in SPECS.values())
    assert index["weight_map"] == {name: file for file, names in files.items() for name in names}
