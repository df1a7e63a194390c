"""Synthetic checkpoints are of their format and size."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.convert import format_named, open_checkpoint
from modbrick.convert.correspondence import correspondence
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.formats.safetensors import TensorSpec
from tools.conversion.synthetic import compare, model_of_size, widened, write_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODULEFORMER = format_named("moduleformer")


def test_a_synthetic_checkpoint_is_one_of_the_format(tmp_path: Path) -> None:
    model = model_of_size("small", "moduleformer", FIXTURES)
    size = write_checkpoint(tmp_path / "first", MODULEFORMER, model, 2_000_000)
    checkpoint = open_checkpoint(tmp_path / "first")
    assert checkpoint.form.name == "moduleformer"
    assert checkpoint.model.segments == model.segments
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) == size
    values = checkpoint.read("segments.0.feed_forward.up.weight").astype(np.float32)
    assert np.isfinite(values).all()
    assert np.unique(values).size > 10_000
    compare(tmp_path / "first", tmp_path / "first")
    write_checkpoint(tmp_path / "other", MODULEFORMER, model.replace(vocabulary=499), 2_000_000)
    with pytest.raises(InputError, match=r"transformer\.wte\.weight differs"):
        compare(tmp_path / "first", tmp_path / "other")


def test_full_size_is_that_of_the_released_model() -> None:
    model = model_of_size("full", "moduleformer", FIXTURES)
    places = correspondence(MODULEFORMER, model).places
    specs = [TensorSpec(place.shape, np.dtype(jnp.bfloat16)) for place in places.values()]
    assert 16.3e9 < sum(spec.nbytes for spec in specs) < 16.4e9


def test_sizes_that_a_format_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="llama has --size=medium"):
        model_of_size("full", "llama", FIXTURES)
    with pytest.raises(InputError, match="holds no model of format llama"):
        model_of_size("medium", "llama", tmp_path)


def test_a_widened_model_is_the_narrowest_that_is_large_enough() -> None:
    small = open_checkpoint(FIXTURES / "granitemoe/multipliers").model
    assert widened(small, 1) == small
    wide = widened(small, 1_000_000)
    factor, rest = divmod(wide.width, small.width)
    assert factor > 1
    assert rest == 0
    count = sum(info.size for info in parameter_table(wide))
    assert 1_000_000 <= count < 3_000_000
    assert wide.layers[0].attention.head_width == factor * small.layers[0].attention.head_width
