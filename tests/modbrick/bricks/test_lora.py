from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import LoRA

RANDOM = np.random.default_rng(0)
INPUTS = jnp.asarray(RANDOM.normal(size=(2, 3, 5)), jnp.float32)
OUTPUTS = jnp.asarray(RANDOM.normal(size=(2, 3, 4)), jnp.float32)
IDS = np.array([[0, 1, 2], [-1, 2, 0]])


def random_lora(variants: int = 3) -> LoRA:
    initial = LoRA.initial(jax.random.key(0), 5, 4, rank=2, alpha=6.0, variants=variants)
    up = jnp.asarray(RANDOM.normal(size=initial.up.shape), jnp.float32)
    return LoRA(initial.down, up, initial.scale)


def change(brick: LoRA, inputs, variant: int) -> np.ndarray:
    down, up = (np.asarray(x[variant], np.float64) for x in (brick.down, brick.up))
    return float(brick.scale) * np.asarray(inputs) @ down @ up


def test_a_new_brick_changes_nothing_and_can_learn():
    brick = LoRA.initial(jax.random.key(0), 5, 4, rank=2)
    assert float(brick.scale) == 1.0
    np.testing.assert_array_equal(brick(INPUTS, OUTPUTS, None), OUTPUTS)
    gradient = jax.grad(lambda b: (b(INPUTS, OUTPUTS, None) ** 2).sum())(brick)
    assert np.linalg.norm(gradient.up) > 0


def test_scale_is_alpha_over_rank():
    assert float(random_lora().scale) == 3.0


def test_each_token_gets_its_variant():
    brick = random_lora()
    actual = np.asarray(brick(INPUTS, OUTPUTS, jnp.asarray(IDS)))
    for (row, column), variant in np.ndenumerate(IDS):
        expected = np.asarray(OUTPUTS)[row, column]
        if variant >= 0:
            expected = expected + change(brick, INPUTS[row, column], variant)
        np.testing.assert_allclose(actual[row, column], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(actual[1, 0], OUTPUTS[1, 0])


def test_without_ids_the_first_variant_applies():
    brick = random_lora()
    expected = np.asarray(OUTPUTS) + change(brick, INPUTS, 0)
    np.testing.assert_allclose(brick(INPUTS, OUTPUTS, None), expected, rtol=1e-5, atol=1e-5)


def test_slots_of_experts_get_the_same_change():
    brick = random_lora()
    slots = jnp.stack([OUTPUTS, 2 * OUTPUTS], axis=2)
    actual = brick(INPUTS, slots, jnp.asarray(IDS))
    single = brick(INPUTS, OUTPUTS, jnp.asarray(IDS))
    np.testing.assert_allclose(actual[:, :, 0], single, rtol=1e-6)
    np.testing.assert_allclose(actual[:, :, 1], single + OUTPUTS, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ids", [None, IDS], ids=["first", "by token"])
def test_the_dtype_of_the_outputs_stays(ids):
    ids = None if ids is None else jnp.asarray(ids)
    brick = random_lora()
    narrow = brick(INPUTS.astype(jnp.bfloat16), OUTPUTS.astype(jnp.bfloat16), ids)
    assert narrow.dtype == jnp.bfloat16
    assert narrow.shape == OUTPUTS.shape
