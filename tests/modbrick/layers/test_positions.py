from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling
from modbrick.layers.positions import rope_frequencies, rope_multiplier, rotate

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN = RopeConfig(base=1e4)
LINEAR = RopeConfig(scaling=LinearScaling(4.0))
LLAMA3 = RopeConfig(base=5e5, scaling=Llama3Scaling(factor=8.0, original_context=8192))
YARN = RopeConfig(scaling=YarnScaling(factor=16.0, original_context=2048))


def plain(base: float, width: int) -> np.ndarray:
    return np.array([base ** (-2 * i / width) for i in range(width // 2)])


def test_plain_and_linear_frequencies():
    np.testing.assert_allclose(rope_frequencies(PLAIN, 64), plain(1e4, 64), rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(LINEAR, 64), plain(1e4, 64) / 4, rtol=1e-6)
    half = RopeConfig(fraction=0.5)
    np.testing.assert_allclose(rope_frequencies(half, 64), plain(1e4, 32), rtol=1e-6)


def test_llama3_frequencies():
    """The rule of Llama 3.1, by wavelength."""
    expected = []
    for frequency in plain(5e5, 128):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            expected.append(frequency / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
    np.testing.assert_allclose(rope_frequencies(LLAMA3, 128), expected, rtol=1e-6)
    kept = np.isclose(expected, plain(5e5, 128))
    assert kept.any()
    assert not kept.all()


def test_yarn_frequencies():
    """NTK-by-parts (arXiv 2309.00071, section 3.2), its ramp linear in the index of the pair."""
    width, base, context = 64, 1e4, 2048

    def pair(rotations: float) -> float:
        return width * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = math.floor(pair(32)), math.ceil(pair(1))
    expected = []
    for index, frequency in enumerate(plain(base, width)):
        extrapolated = 1 - min(max((index - first) / (last - first), 0), 1)
        expected.append(extrapolated * frequency + (1 - extrapolated) * frequency / 16)
    actual = rope_frequencies(YARN, width)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    # Pairs that turn often over the context keep their frequency, slow ones are divided.
    turns = context * plain(base, width) / (2 * math.pi)
    np.testing.assert_allclose(actual[turns > 40], plain(base, width)[turns > 40], rtol=1e-6)
    np.testing.assert_allclose(actual[turns < 0.8], plain(base, width)[turns < 0.8] / 16, rtol=1e-6)


def test_only_yarn_scales_what_it_rotates():
    assert rope_multiplier(YARN) == pytest.approx(0.1 * math.log(16) + 1)
    unstretched = YarnScaling(factor=1.0, original_context=8)
    assert rope_multiplier(RopeConfig(scaling=unstretched)) == 1.0
    given = YarnScaling(factor=4.0, original_context=8, attention_factor=1.5)
    assert rope_multiplier(RopeConfig(scaling=given)) == 1.5
    assert rope_multiplier(LLAMA3) == rope_multiplier(LINEAR) == 1.0


@pytest.mark.parametrize("config", [PLAIN, LINEAR, LLAMA3, YARN, RopeConfig(fraction=0.25)])
def test_rotation_is_multiplication_by_a_complex_number(config):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 3, 16))
    positions = random.integers(0, 300, (2, 5))
    half = int(16 * config.fraction) // 2
    turn = np.exp(1j * positions[..., None] * rope_frequencies(config, 16).astype(np.float64))
    pairs = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn[:, :, None]
    pairs = pairs * rope_multiplier(config)
    expected = np.concatenate([pairs.real, pairs.imag, x[..., 2 * half :]], axis=-1)
    actual = rotate(config, jnp.asarray(x, jnp.float32), jnp.asarray(positions))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [PLAIN, LLAMA3, YARN])
def test_products_depend_on_distance_only(config):
    random = np.random.default_rng(1)
    query, key = jnp.asarray(random.normal(size=(2, 1, 1, 1, 16)), jnp.float32)

    def product(i: int, j: int) -> float:
        at_i, at_j = (rotate(config, x, jnp.array([[n]])) for x, n in ((query, i), (key, j)))
        return float((at_i * at_j).sum())

    assert product(107, 100) == pytest.approx(product(7, 0), abs=1e-3)
    assert product(107, 90) != pytest.approx(product(7, 0), abs=1e-3)


def test_any_number_of_head_axes():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 4, 8)), jnp.float32)
    positions = jnp.arange(6).reshape(2, 3)
    flat = rotate(PLAIN, x, positions)
    deep = rotate(PLAIN, x.reshape(2, 3, 2, 2, 8), positions)
    np.testing.assert_array_equal(deep.reshape(x.shape), flat)


def test_bfloat16_is_rotated_in_float32():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 2, 8)), jnp.bfloat16)
    positions = jnp.array([[1000, 2001, 3003, 4005]])
    narrow = rotate(PLAIN, x, positions)
    assert narrow.dtype == jnp.bfloat16
    wide = rotate(PLAIN, x.astype(jnp.float32), positions)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
