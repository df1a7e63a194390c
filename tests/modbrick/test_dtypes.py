"""Dtypes as Python programs name them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.config.families import dense
from modbrick.dtypes import dtype_name
from modbrick.errors import InputError
from modbrick.training.run_config import TrainingConfig

MODEL = dense(vocabulary=32, width=8, layers=1, heads=2, feed_forward_width=16)


class OfTorch:
    """What `torch.bfloat16` looks like to those who do not import torch."""

    def __str__(self) -> str:
        return "torch.bfloat16"


NAMED = ["bfloat16", "torch.bfloat16", OfTorch(), jnp.bfloat16, jnp.dtype("bfloat16")]


@pytest.mark.parametrize("value", NAMED)
def test_names_of_one_dtype_are_one(value: Any) -> None:
    assert dtype_name(value) == "bfloat16"
    assert MODEL.replace(dtype=value) == MODEL.replace(dtype="bfloat16")
    assert dataclasses.asdict(TrainingConfig(1, frozen_dtype=value))["frozen_dtype"] == "bfloat16"


def test_float32_too() -> None:
    for value in (np.float32, np.dtype("float32"), jnp.float32, "torch.float32", "float32"):
        assert MODEL.replace(dtype=value).dtype == "float32"


@pytest.mark.parametrize(
    "value", ["bf16", "int8", "torch.float16", np.float64, float, jnp.int8, None, 3, "", object]
)
def test_others_are_refused_in_a_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"^model dtype must be float32 or bfloat16, got \S") as it:
        MODEL.replace(dtype=value) if value != "" else MODEL.replace(dtype="?")
    assert "\n" not in str(it.value)
    if value is not None:
        with pytest.raises(InputError, match="training frozen_dtype must be"):
            TrainingConfig(1, frozen_dtype=value)
