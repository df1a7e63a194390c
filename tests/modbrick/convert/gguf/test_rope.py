"""Rotary frequencies: from metadata, and from the tensor of divisors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modbrick.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from modbrick.convert.gguf.keys import Keys
from modbrick.convert.gguf.rope import rope_config
from modbrick.errors import InputError
from modbrick.layers.positions import rope_frequencies

WIDTH = 64


def config(divisors: np.ndarray | None = None, **settings: Any) -> RopeConfig:
    metadata = {f"llama.rope.{name.replace('__', '.')}": v for name, v in settings.items()}
    return rope_config(Keys(metadata, "llama.", "file"), WIDTH, 4096, divisors)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, RopeConfig()),
        ({"freq_base": 5e5, "dimension_count": WIDTH}, RopeConfig(base=5e5)),
        ({"scaling__type": "none", "scaling__factor": 8.0}, RopeConfig()),
        ({"scaling__factor": 2.0}, RopeConfig(scaling=LinearScaling(2.0))),
        ({"scale_linear": 2.0}, RopeConfig(scaling=LinearScaling(2.0))),
        ({"scaling__factor": 0.0}, RopeConfig()),
        ({"scaling__type": "linear", "scaling__factor": 1.0}, RopeConfig()),
        (
            {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__finetuned": True},
            RopeConfig(scaling=YarnScaling(factor=4.0, original_context=4096)),
        ),
        (
            {
                "scaling__type": "yarn",
                "scaling__factor": 4.0,
                "scaling__original_context_length": 1024,
                "scaling__yarn_beta_fast": 16.0,
                "scaling__yarn_beta_slow": 2.0,
            },
            RopeConfig(
                scaling=YarnScaling(
                    factor=4.0, original_context=1024, beta_fast=16.0, beta_slow=2.0
                )
            ),
        ),
    ],
)
def test_metadata(settings: dict[str, Any], wanted: RopeConfig) -> None:
    assert config(**settings) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimension_count": 32}, "dimension_count is 32; only the head width, 64"),
        ({"scaling__type": "longrope"}, "type is 'longrope'; it can be none, linear, yarn"),
        ({"scaling__attn_factor": 1.5}, "attn_factor is 1.5; only 1"),
        ({"scaling__yarn_ext_factor": 0.0}, "yarn_ext_factor is 0.0; only 1"),
        ({"freq_base": "a"}, "freq_base is 'a'; expected a number"),
        ({"freq_base": -1.0}, "rope base must be positive"),
        ({"scaling__factor": 0.5}, "rope factor must be at least 1"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**settings)


def divisors(wanted: RopeConfig) -> np.ndarray:
    plain = rope_frequencies(RopeConfig(base=wanted.base), WIDTH).astype(np.float64)
    return (plain / rope_frequencies(wanted, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("factor", [4.0, 8.0, 32.0])
@pytest.mark.parametrize(("context", "high"), [(8192, 4.0), (4096, 4.0), (8192, 16.0), (1500, 8.0)])
def test_divisors_become_the_settings_that_made_them(
    base: float, factor: float, context: int, high: float
) -> None:
    wanted = RopeConfig(
        base=base,
        scaling=Llama3Scaling(
            factor=factor,
            original_context=context,
            low_frequency_factor=1.0,
            high_frequency_factor=high,
        ),
    )
    assert config(divisors(wanted), freq_base=base) == wanted


def test_divisors_of_one_are_no_scaling() -> None:
    assert config(np.ones(WIDTH // 2, np.float32)) == RopeConfig()


def scaled(change: Any) -> np.ndarray:
    values = divisors(RopeConfig(scaling=Llama3Scaling(factor=8.0, original_context=8192)))
    change(values)
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(7, np.float32), r"shape \[7\], expected \[32\]"),
        (scaled(lambda v: v.__setitem__(3, 0)), "no divisors"),
        (scaled(lambda v: v.__setitem__(3, np.nan)), "no divisors"),
        (scaled(lambda v: v.__setitem__(3, 1.1)), "not the scaling of Llama 3.1"),
        (scaled(lambda v: v.__setitem__(-1, 9)), "not the scaling of Llama 3.1"),
        (scaled(lambda v: v.__setitem__(slice(None), v[::-1].copy())), "not the scaling"),
        (np.full(WIDTH // 2, 2, np.float32), "not the scaling of Llama 3.1"),
        (np.full(WIDTH // 2, 0.5, np.float32), "not the scaling of Llama 3.1"),
        (np.linspace(1, 4, WIDTH // 2, dtype=np.float32), "not the scaling of Llama 3.1"),
    ],
)
def test_other_divisors_are_refused(values: np.ndarray, message: str) -> None:
    with np.errstate(all="raise"), pytest.raises(InputError, match=message):
        config(values)


def test_divisors_and_another_scaling_are_refused() -> None:
    values = scaled(lambda v: None)
    with pytest.raises(InputError, match="cannot be combined with rope_freqs"):
        config(values, scaling__type="yarn", scaling__factor=2.0)
