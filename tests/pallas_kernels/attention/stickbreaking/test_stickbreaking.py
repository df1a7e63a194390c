from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.stickbreaking import (
    IMPLEMENTATIONS,
    choose_implementation,
    stickbreaking_attention,
)


def _arguments(**changes):
    arguments = {
        "query": jnp.ones((2, 5, 4, 8)),
        "key": jnp.ones((2, 7, 2, 8)),
        "value": jnp.ones((2, 7, 2, 6)),
    }
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": jnp.ones((2, 5, 8))}, r"\[B, S, heads, width\].*\(2, 5, 8\)"),
        ({"query": jnp.ones((2, 5, 3, 8))}, r"multiple.*\(2, 5, 3, 8\).*\(2, 7, 2, 8\)"),
        ({"query": jnp.ones((2, 5, 4, 9))}, r"same width.*\(2, 5, 4, 9\)"),
        ({"query": jnp.ones((3, 5, 4, 8))}, r"same batch size.*\(3, 5, 4, 8\)"),
        ({"value": jnp.ones((2, 6, 2, 6))}, r"key and value.*\(2, 6, 2, 6\)"),
        ({"value": jnp.ones((2, 7, 2, 6), jnp.bfloat16)}, "dtype.*value bfloat16"),
        ({"query_segment_ids": jnp.ones((2, 5), int)}, "key_segment_ids is missing"),
        ({"key_segment_ids": jnp.ones((2, 7), int)}, "query_segment_ids is missing"),
        ({"key_mask": jnp.ones((2, 5), bool)}, r"key_mask must be \(2, 7\), got \(2, 5\)"),
        ({"key_mask": jnp.ones((2, 7))}, "key_mask must be bool, got float32"),
        ({"query_offset": 1.5}, "query_offset must be an integer scalar, got 1.5"),
        ({"query_offset": jnp.ones(2, int)}, "query_offset must be an integer scalar"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"tolerance": 1.0}, "tolerance must be a number .* to below 1, got 1.0"),
        ({"tolerance": -0.1}, "tolerance must be .* got -0.1"),
        ({"tolerance": math.nan}, "tolerance must be .* got nan"),
        ({"tolerance": jnp.ones(())}, "tolerance must be a number of Python's"),
        ({"implementation": "fast"}, "'fast'"),
        ({"implementation": "gpu"}, "'gpu' cannot run: float32 inputs"),
    ],
)
def test_errors_name_the_argument(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stickbreaking_attention(**_arguments(**changes))


def test_choose_implementation() -> None:
    best = choose_implementation()
    assert best in IMPLEMENTATIONS
    assert choose_implementation("reference") == "reference"
    chosen = stickbreaking_attention(**_arguments())
    named = stickbreaking_attention(**_arguments(), implementation=best)
    np.testing.assert_array_equal(chosen.output, named.output)
