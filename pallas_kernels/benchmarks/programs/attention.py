"""Contenders for attention: ours, and softmax attention kernels at equal shapes.

Every contender is a function of query, key and value, [B, S, H, D].
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.attention.stickbreaking import stickbreaking_attention
from pallas_kernels.benchmarks.cases import STATIC_ATTENTION_CASES
from pallas_kernels.compile_report.program import Program

Contender = Callable[[Array, Array, Array], Array]
_SPLASH_BLOCK = 512


def ours(implementation: str | None, tolerance: float = 0.0) -> Contender:
    """The public op."""

    def attend(query: Array, key: Array, value: Array) -> Array:
        return stickbreaking_attention(
            query, key, value, tolerance=tolerance, implementation=implementation
        ).output

    return attend


def splash(query: Array, key: Array, value: Array) -> Array:
    """Splash attention of jax, causal, in blocks of 512."""
    package = "jax.experimental.pallas.ops.tpu.splash_attention."
    kernels = importlib.import_module(package + "splash_attention_kernel")
    masks = importlib.import_module(package + "splash_attention_mask")
    length, heads, width = query.shape[1:]
    block = min(_SPLASH_BLOCK, length)
    fields = [f.name for f in dataclasses.fields(kernels.BlockSizes) if f.name.startswith("block")]
    fused = {"block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"}
    sizes = dict.fromkeys(fused & set(fields), block)
    sizes |= dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), block)
    mask = masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)])
    kernel = kernels.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=kernels.BlockSizes(**sizes)
    )
    scaled = query / math.sqrt(width)
    by_head = (jnp.swapaxes(x, 1, 2) for x in (scaled, key, value))
    return jnp.swapaxes(jax.vmap(kernel)(*by_head), 1, 2)


def _in_half(attend: Any, query: Array, key: Array, value: Array, config: Any) -> Array:
    """Those kernels take float16 only: as wide as bfloat16, and as fast."""
    halves = (x.astype(jnp.float16) for x in (query, key, value))
    return attend(*halves, config).astype(query.dtype)


def hopper_attention(query: Array, key: Array, value: Array) -> Array:
    """The Mosaic GPU attention of jax, causal."""
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    config = module.TuningConfig(
        block_q=64,
        block_kv=64,
        max_concurrent_steps=2,
        causal=True,
    )
    return _in_half(module.attention, query, key, value, config)


def hopper_attention_full(query: Array, key: Array, value: Array) -> Array:
    """The same over all keys: its backward pass knows no mask."""
    module = importlib.import_module("jax.experimental.pallas.ops.gpu.attention_mgpu")
    blocks = dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), 64)
    config = module.TuningConfig(block_q=64, block_kv=64, max_concurrent_steps=2, **blocks)
    return _in_half(module.attention, query, key, value, config)


def softmax(implementation: Literal["cudnn", "xla"]) -> Contender:
    """`jax.nn.dot_product_attention`, causal: "cudnn" or "xla"."""

    def attend(query: Array, key: Array, value: Array) -> Array:
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=True, implementation=implementation
        )

    return attend


PEERS: dict[str, Contender] = {
    "splash": splash,
    "hopper_attention": hopper_attention,
    "hopper_attention_full": hopper_attention_full,
    "cudnn": softmax("cudnn"),
    "xla_softmax": softmax("xla"),
}


def contender(name: str) -> Contender:
    """The contender of that name: one of `PEERS`, or an implementation of ours."""
    return PEERS[name] if name in PEERS else ours(name)


def forward_and_backward(attend: Contender) -> Callable[..., Any]:
    """The output, and the gradients for a given gradient of the output."""

    def run(query: Array, key: Array, value: Array, gradient: Array) -> Any:
        output, pull_back = jax.vjp(attend, query, key, value)
        return output, pull_back(gradient)

    return run


def attention_program(
    case: str, name: str, direction: str, overrides: dict[str, Any] | None = None
) -> Program:
    """A program for the compile-time report.

    Args:
        case: a name of `STATIC_ATTENTION_CASES`.
        name: of a contender.
        direction: "forward" or "forward_backward".
        overrides: of fields of the case.
    """
    shape = dataclasses.replace(STATIC_ATTENTION_CASES[case], **(overrides or {}))
    array = jax.ShapeDtypeStruct(
        (shape.batch, shape.length, shape.heads, shape.width), jnp.bfloat16
    )
    if direction == "forward":
        return Program(contender(name), (array,) * 3)
    return Program(forward_and_backward(contender(name)), (array,) * 4)
