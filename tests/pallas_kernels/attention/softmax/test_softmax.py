from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import softmax_attention as op
from pallas_kernels.softmax_attention import softmax_attention


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": jnp.ones((2, 5, 3, 8))}, r"multiple.*\(2, 5, 3, 8\).*\(2, 7, 2, 8\)"),
        ({"value": jnp.ones((2, 6, 2, 6))}, r"key and value.*\(2, 6, 2, 6\)"),
        ({"key_segment_ids": jnp.ones((2, 7), int)}, "query_segment_ids is missing"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"implementation": "tpu"}, "'tpu' is unknown; known are 'reference', 'xla'"),
        ({"implementation": "splash"}, "'splash' cannot run: .* inputs are float32; use 'xla'"),
        ({"implementation": "cudnn"}, "'cudnn' cannot run: .* inputs are float32"),
    ],
)
def test_errors_name_the_argument(changes, message: str) -> None:
    arguments = {
        "query": jnp.ones((2, 5, 4, 8)),
        "key": jnp.ones((2, 7, 2, 8)),
        "value": jnp.ones((2, 7, 2, 6)),
    }
    with pytest.raises(ValueError, match=message):
        softmax_attention(**(arguments | changes))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_kernels_of_other_libraries_are_taken_by_name_only(platform: str) -> None:
    """They round otherwise: results do not change with the machine unless one asks."""
    array = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    case = op.Case(array, array, array)
    assert op.choose_implementation(None, case, platform) == "xla"
    assert op.choose_implementation("splash", case) == "splash"
    available = op.available_implementations(case, "tpu")
    assert available["splash"] is None
    assert "NVIDIA" in (available["cudnn"] or "")
