from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contracts.softmax_attention import CASES, arrays_of, assert_close, call, exact
from tests.contracts.sweep import sweep


@sweep(
    "name",
    ["grouped", "not_causal", "window", "padding", "fewer_queries"],
    ["padding", "fewer_queries"],
)
def test_reference_is_dot_product_attention(name: str) -> None:
    (batch, queries, keys, *_), options = CASES[name]
    query, key, value, d_output = arrays_of(*CASES[name][0])
    distance = np.arange(queries)[:, None] + keys - queries - np.arange(keys)
    mask = np.ones((batch, 1, queries, keys), bool)
    if options.get("causal", True):
        mask &= distance >= 0
    mask &= distance < options.get("window", keys)
    if "key_mask" in options:
        mask &= options["key_mask"][:, None, None]
    if "key_segment_ids" in options:
        same = options["query_segment_ids"][:, :, None] == options["key_segment_ids"][:, None]
        mask &= same[:, None]
    some = mask.any(axis=(1, 3))  # What others get is no business of that function.
    with jax.enable_x64(True):
        output, *_ = call("reference", (query, key, value, d_output), options, jnp.float64)
        expected = jax.nn.dot_product_attention(
            jnp.asarray(query),
            jnp.asarray(key),
            jnp.asarray(value),
            mask=jnp.asarray(mask),
            scale=options.get("scale"),
        )
    np.testing.assert_allclose(output[some], np.asarray(expected)[some], atol=1e-6)


@pytest.mark.parametrize("name", ["all_masks", "some_see_nothing"])
def test_gradients_agree_with_formulas(name: str) -> None:
    """In numpy, where all other implementations are compared with them."""
    shape, options = CASES[name]
    with jax.enable_x64(True):
        found = call("reference", arrays_of(*shape), options, jnp.float64)
    assert_close(found, exact(name, np.float32), 1e-13)
