"""Rotary positions of the transformers library: both forms, all kinds, and back."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modbrick.config import Llama3Scaling, RopeConfig, YarnScaling
from modbrick.convert.huggingface.rope import RopeFields, read_rope, write_rope
from modbrick.errors import InputError
from modbrick.layers.positions import rope_frequencies, rope_multiplier

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def rope_of(**fields: Any) -> RopeConfig:
    return read_rope(RopeFields(**fields), "config.json")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        LLAMA3,
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25},
        YARN | {"truncate": False},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_both_forms_are_the_same_and_come_back(scaling: dict[str, Any]) -> None:
    newer = rope_of(rope_parameters=scaling | {"rope_theta": 5e5})
    older = rope_of(rope_scaling=scaling, rope_theta=5e5)
    assert newer == older == rope_of(**json.loads(json.dumps(write_rope(newer))))
    both = rope_of(rope_scaling=scaling, rope_parameters=scaling, rope_theta=5e5)
    assert both == newer
    named_type = {"type" if key == "rope_type" else key: v for key, v in scaling.items()}
    assert rope_of(rope_scaling=named_type, rope_theta=5e5) == newer


def test_defaults_are_the_librarys() -> None:
    assert rope_of() == RopeConfig(base=10_000.0)
    assert read_rope(RopeFields(), "config.json", theta=1e6).base == 1e6
    stretched = {key: v for key, v in LLAMA3.items() if not key.startswith("original")}
    scaling = rope_of(rope_scaling=stretched, max_position_embeddings=96).scaling
    assert isinstance(scaling, Llama3Scaling)
    assert scaling.original_context == 96
    yarn = rope_of(rope_scaling=YARN | {"factor": None}, max_position_embeddings=160).scaling
    assert isinstance(yarn, YarnScaling)
    assert (yarn.factor, yarn.beta_fast, yarn.beta_slow) == (2.5, 32.0, 1.0)
    assert rope_of(partial_rotary_factor=1.0) == RopeConfig()


CASES = json.loads((Path(__file__).parents[3] / "fixtures" / "rope.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(list(case["settings"].items())[3:]))
def test_frequencies_are_the_librarys(case: dict[str, Any]) -> None:
    """`tests/fixtures/make_transformers_variants.py` says how they were made."""
    settings = case["settings"]
    names = {field.name for field in dataclasses.fields(RopeFields)}
    rope = rope_of(**{key: value for key, value in settings.items() if key in names})
    width = settings["hidden_size"] // settings["num_attention_heads"]
    np.testing.assert_allclose(rope_frequencies(rope, width), case["frequencies"], rtol=1e-6)
    assert rope_multiplier(rope) == pytest.approx(case["multiplier"], rel=1e-7)
    assert rope_of(**json.loads(json.dumps(write_rope(rope)))) == rope


def test_mscale_becomes_the_attention_factor() -> None:
    yarn = rope_of(rope_scaling=YARN | {"mscale": 0.7, "mscale_all_dim": 0.2})
    wanted = (0.07 * math.log(4) + 1) / (0.02 * math.log(4) + 1)
    assert rope_multiplier(yarn) == pytest.approx(wanted, rel=1e-15)
    assert rope_multiplier(rope_of(rope_scaling=YARN)) == pytest.approx(0.1 * math.log(4) + 1)


def test_llama3_keeps_divides_and_blends() -> None:
    """Wavelengths below 16 are kept, those above 64 are divided by 8 (64 tokens, factors 4, 1)."""
    plain = rope_frequencies(RopeConfig(base=1000.0), 32).astype(np.float64)
    scaled = rope_frequencies(rope_of(rope_scaling=LLAMA3, rope_theta=1000.0), 32)
    wavelengths = 2 * np.pi / plain
    short, long = wavelengths < 16, wavelengths > 64
    assert short.any()
    assert long.any()
    assert (~short & ~long).any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = scaled[~short & ~long]
    assert (between < plain[~short & ~long]).all()
    assert (between > plain[~short & ~long] / 8).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "differ"),
        ({"rope_scaling": {"type": "linear"}}, "'linear' rope scaling has no factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of the rope scaling is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be at least 1, got 0.5"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "has no low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "must exceed"),
        ({"rope_scaling": YARN | {"truncate": "no"}}, "truncate .* 'no', neither true nor false"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 1}}, "unknown options .*odd"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 0}, "is 0, no length"),
        ({"rope_scaling": YARN | {"short_factor": [1.0]}}, "unknown options .*short_factor"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0, below 1"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "say different things"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        rope_of(**fields)
    assert str(caught.value).startswith("config.json: ")
