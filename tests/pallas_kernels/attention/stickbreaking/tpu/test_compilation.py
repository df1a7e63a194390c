"""The attention kernels for TPUs beyond interpret mode: lowered, and compiled with libtpu."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention.shared.block_sizes import BlockSizes
from pallas_kernels.attention.stickbreaking import stickbreaking_attention
from pallas_kernels.attention.stickbreaking.tpu.block_sizes import TpuBlockSizes, compiling_for
from pallas_kernels.compile_report import compile_for, lower_for_tpu, tpu_devices

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
# What is compiled is the code, and its time is that of a tile.
SMALL = TpuBlockSizes(forward=BlockSizes(128, 128), backward=BlockSizes(128, 128))
FORWARD, BACKWARD = "stickbreaking_attention_forward", "stickbreaking_attention_backward"


def _gradients(implementation: str | None, **options: Any) -> Any:
    def run(query: Any, key: Any, value: Any, segment_ids: Any = None) -> Any:
        def loss(*arrays: Any) -> jax.Array:
            output, remainder = stickbreaking_attention(
                *arrays,
                query_segment_ids=segment_ids,
                key_segment_ids=segment_ids,
                implementation=implementation,
                **options,
            )
            return output.astype(jnp.float32).sum() + jnp.sin(remainder).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(query, key, value)

    return run


def _avals(
    length: int, width: int, heads: int, groups: int, dtype: Any, *, segments: bool = False
) -> list[jax.ShapeDtypeStruct]:
    avals = [jax.ShapeDtypeStruct((1, length, n, width), dtype) for n in (heads, groups, groups)]
    return avals + [jax.ShapeDtypeStruct((1, length), jnp.int32)] * segments


@pytest.mark.parametrize(
    ("avals", "options"),
    [
        (_avals(300, 64, 4, 2, "bfloat16", segments=True), {"tolerance": 0.01, "window": 99}),
        (_avals(256, 1024, 1, 1, "bfloat16"), {"attend_current": True}),
        (_avals(256, 20, 2, 2, "float32"), {}),
    ],
    ids=["options", "wide", "odd_float32"],
)
def test_lowers_for_a_tpu(avals: Any, options: dict[str, Any]) -> None:
    with compiling_for(blocks=SMALL):
        # None: on a TPU the kernels are what is picked.
        text = lower_for_tpu(_gradients(None, **options), *avals)
    assert set(re.findall(r'kernel_name = "(\w+)"', text)) == {FORWARD, BACKWARD}


@pytest.mark.parametrize(("width", "dtype"), [(320, "float32"), (640, "bfloat16")])
def test_widths_between_powers_of_two_lower(width: int, dtype: str) -> None:
    text = lower_for_tpu(_gradients(None), *_avals(256, width, 1, 1, dtype))
    assert set(re.findall(r'kernel_name = "(\w+)"', text)) == {FORWARD, BACKWARD}


def test_decoding_lowers_for_a_tpu() -> None:
    def step(query: Any, key: Any, value: Any, offset: Any) -> Any:
        return stickbreaking_attention(
            query, key, value, query_offset=offset, attend_current=True, implementation="tpu"
        )

    query = jax.ShapeDtypeStruct((2, 1, 8, 64), jnp.bfloat16)
    cache = jax.ShapeDtypeStruct((2, 1024, 2, 64), jnp.bfloat16)
    text = lower_for_tpu(step, query, cache, cache, jax.ShapeDtypeStruct((), jnp.int32))
    assert re.findall(r'kernel_name = "(\w+)"', text) == [FORWARD]


@pytest.mark.verify
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(
    ("avals", "options"),
    [
        (_avals(1024, 128, 2, 1, "bfloat16", segments=True), {"tolerance": 0.01, "window": 999}),
        (_avals(1024, 64, 2, 2, "bfloat16"), {}),
        (_avals(1024, 256, 1, 1, "bfloat16"), {}),
        (_avals(512, 1024, 1, 1, "bfloat16"), {"attend_current": True}),
        (_avals(500, 20, 7, 7, "float32"), {}),
    ],
    ids=["options", "64", "256", "1024", "odd_float32"],
)
def test_compiles(topology: str, avals: Any, options: dict[str, Any]) -> None:
    device = tpu_devices(TOPOLOGIES[topology])[0]
    text = compile_for(device, _gradients("tpu", **options), *avals).as_text()
    assert text is not None
    assert FORWARD in text
    assert BACKWARD in text


@pytest.mark.verify
@pytest.mark.parametrize("topology", ["v5p", "v6e"])
def test_temporary_memory_is_linear(topology: str) -> None:
    device = tpu_devices(TOPOLOGIES[topology])[0]

    def temporary(length: int) -> int:
        compiled = compile_for(
            device, _gradients("tpu"), *_avals(length, 128, 12, 12, jnp.bfloat16)
        )
        memory = compiled.memory_analysis()
        assert memory is not None
        return int(memory.temp_size_in_bytes)

    short, long = temporary(8192), temporary(16384)
    assert long <= 2.1 * short
    # A hundred bytes or so an element of the queries; all pairs would be 12 GiB.
    assert long <= 100 * 16384 * 12 * 128
