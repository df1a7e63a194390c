"""cuDNN behind this operation's arguments, lowered: it computes on GPUs only."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from pallas_kernels.attention.softmax import cudnn
from pallas_kernels.softmax_attention import Case, softmax_attention
from tests.contracts.softmax_attention import CASES, arrays_of, assert_close, exact

ARRAY = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
KEYS = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.bfloat16)
CASE = Case(ARRAY, KEYS, KEYS)


@pytest.fixture
def _cudnn_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # jax asks for its version while it traces; programs can be lowered without it.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


@pytest.mark.usefixtures("_cudnn_is_installed")
@pytest.mark.parametrize(
    ("options", "mask", "window"),
    [
        ({}, "CAUSAL", 0),
        ({"window": 99}, "CAUSAL", 99),
        ({"causal": False}, "NO_MASK", 0),
    ],
    ids=["causal", "window", "all"],
)
def test_lowers_for_a_gpu(options: dict[str, Any], mask: str, window: int) -> None:
    attend = functools.partial(softmax_attention, implementation="cudnn", **options)

    def run(*arrays: jax.Array) -> Any:
        output, pull = jax.vjp(attend, *arrays)
        return output, pull(output)

    traced = jax.jit(run).trace(ARRAY, KEYS, KEYS)
    text = traced.lower(lowering_platforms=("cuda",)).as_text().replace(r"\22", "")
    calls = set(re.findall(r"__cudnn\$\w+", text))
    assert calls == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert set(re.findall(r"mask_type: (\w+)", text)) == {mask}
    assert {int(n) for n in re.findall(r"sliding_window_length: (\d+)", text)} == {window}


@pytest.mark.parametrize("name", ["grouped", "not_causal", "window"])
def test_arguments_mean_the_same_to_jax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By jax's own form of that function, which takes the same arguments."""
    shape, options = CASES[name]
    query, key, value, _ = (jnp.asarray(x, jnp.float32) for x in arrays_of(*shape))
    attend = jax.nn.dot_product_attention

    def in_xla(*arrays: jax.Array, implementation: str, **arguments: Any) -> jax.Array:
        assert implementation == "cudnn"
        return attend(*arrays, **arguments, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", in_xla)
    monkeypatch.setattr(cudnn, "_DTYPES", (jnp.float32,))
    output = softmax_attention(query, key, value, implementation="cudnn", **options)
    assert_close([np.asarray(output)] * 4, exact(name, np.float32)[:1] * 4, 1e-5)


@pytest.mark.usefixtures("_cudnn_is_installed")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"window": 7}, None),
        ({"causal": False, "offset": 3}, None),
        ({"segments": True}, "neither segment ids"),
        ({"padding": True}, "nor a key mask"),
        ({"offset": 3}, "query_offset must be the number 0"),
        ({"offset": None}, "query_offset must be the number 0"),
        ({"causal": False, "window": 7}, "a window with causal attention only"),
        ({"value": jax.ShapeDtypeStruct((2, 256, 2, 32), jnp.bfloat16)}, "of one width"),
        (dict.fromkeys(("query", "key", "value"), KEYS.update(shape=(2, 8, 2, 1000))), "jax says"),
    ],
)
def test_what_cannot_run_says_why(changes: dict[str, Any], reason: str | None) -> None:
    said = cudnn.unsupported(dataclasses.replace(CASE, **changes), None)
    if reason is None:
        assert said is None
    else:
        assert reason in (said or "")


def test_it_says_where_it_runs() -> None:
    assert "NVIDIA GPUs" in (cudnn.unsupported(CASE, "tpu") or "")
