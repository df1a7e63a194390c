"""What the benchmark of conversion measures, on a small checkpoint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from modbrick.convert import format_named, open_checkpoint
from modbrick.errors import InputError

ROOT = Path(__file__).parents[2]
MODULEFORMER = format_named("moduleformer")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    before, path = set(flags.FLAGS), str(ROOT / "scripts")
    sys.path.insert(0, path)
    yield importlib.import_module("benchmark_conversion")
    sys.path.remove(path)
    del sys.modules["benchmark_conversion"]
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_the_synthetic_checkpoint_is_one_of_the_format(script: ModuleType, tmp_path: Path) -> None:
    model = script.model_of_size("small")
    size = script.write_checkpoint(tmp_path / "first", MODULEFORMER, model, 2_000_000)
    checkpoint = open_checkpoint(tmp_path / "first")
    assert checkpoint.form.name == "moduleformer"
    assert checkpoint.model.segments == model.segments
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == size
    values = checkpoint.read("segments.0.feed_forward.up.weight").astype(np.float32)
    assert np.isfinite(values).all()
    assert np.unique(values).size > 10_000
    script.compare(tmp_path / "first", tmp_path / "first")
    script.write_checkpoint(
        tmp_path / "other", MODULEFORMER, model.replace(vocabulary=499), 2_000_000
    )
    with pytest.raises(InputError, match=r"transformer\.wte\.weight differs"):
        script.compare(tmp_path / "first", tmp_path / "other")


def test_full_size_is_that_of_the_released_model(script: ModuleType) -> None:
    model = script.model_of_size("full")
    places = script.correspondence(MODULEFORMER, model).places
    specs = [script.TensorSpec(place.shape, np.dtype(jnp.bfloat16)) for place in places.values()]
    assert 16.3e9 < sum(spec.nbytes for spec in specs) < 16.4e9


def test_a_widened_model_is_the_narrowest_that_is_large_enough(script: ModuleType) -> None:
    small = open_checkpoint(ROOT / "tests/fixtures/granitemoe/multipliers").model
    assert script.widened(small, 1) == small
    wide = script.widened(small, 1_000_000)
    factor, rest = divmod(wide.width, small.width)
    assert factor > 1
    assert rest == 0
    count = sum(info.size for info in script.parameter_table(wide))
    assert 1_000_000 <= count < 3_000_000
    assert wide.layers[0].attention.head_width == factor * small.layers[0].attention.head_width


def test_time_and_peak_memory_are_those_of_the_command(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    code = "import time; x = bytearray(200 << 20); time.sleep(0.3)"
    measured = script.timed([sys.executable, "-c", code], tmp_path)
    assert measured.seconds >= 0.3
    assert 200 << 20 <= measured.peak_bytes < 400 << 20
    with pytest.raises(InputError, match="ended with status 3"):
        script.timed([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
