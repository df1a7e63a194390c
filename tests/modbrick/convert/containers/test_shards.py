"""Safetensors are written as the reference implementation reads them."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from modbrick.convert.containers.shards import SafetensorsWriter, TensorSpec, divide, index_text
from modbrick.formats.safetensors import read_safetensors

VALUES: dict[str, np.ndarray] = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5).astype(jnp.bfloat16),
    "scalar": np.array(3, np.float16),
    "c.ä": np.arange(6).reshape(1, 6).astype(np.float16),
}
SPECS = {name: TensorSpec(value.shape, value.dtype) for name, value in VALUES.items()}


def test_the_reference_reads_what_is_written_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, SPECS) as writer:
        writer.write(VALUES["a"][:1])
        writer.write(VALUES["a"].T[:, 1:].T)  # not in C order
        for name in ("b", "scalar", "c.ä"):
            writer.write(VALUES[name])
    found = load_file(path)
    assert found.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert found[name].tobytes() == value.tobytes()
        assert read_safetensors(path)[name].read().tobytes() == value.tobytes()
    with safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_too_few_values_are_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="announced, not written"),
        SafetensorsWriter(tmp_path / "x", SPECS) as writer,
    ):
        writer.write(VALUES["a"])


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
