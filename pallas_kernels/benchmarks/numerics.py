"""Every implementation that can run here against the reference, at small shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.stickbreaking.gpu import registers
from pallas_kernels.benchmarks.cases import ExpertCase
from pallas_kernels.benchmarks.programs import attention, experts
from pallas_kernels.benchmarks.timing import relative_error

IMPLEMENTATIONS = ("xla", "tpu", "gpu")
# No multiples of a tile, an empty expert, one with most of the load.
_EXPERTS = ExpertCase("small", "feed_forward", 100, 2, 128, 256, 4, "zipf")
_LENGTH, _HEADS, _WIDTH = 200, 2, 64


@contextlib.contextmanager
def simulated(implementation: str) -> Iterator[str]:
    """Runs the kernels of an implementation: on its device, or else in interpret mode.

    Yields:
        How they run: "compiled" or "interpreted".
    """
    platform = {"gpu": "gpu", "tpu": "tpu"}.get(implementation)
    if platform is None or jax.default_backend() == platform:
        yield "compiled"
    elif platform == "tpu":
        with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams()):
            yield "interpreted"
    else:
        # With plain JAX in place of register code, which the interpreter does not know.
        with registers.simulated():
            yield "interpreted"


def numerics(op: str, on_done: Callable[[], None] | None = None) -> dict[str, Any]:
    """Relative errors of outputs and gradients, by implementation and dtype.

    The reference computes in float64 on the values that the implementation gets.

    Args:
        op: "grouped_matmul" or "stickbreaking_attention".
        on_done: called after each implementation and dtype.

    Returns:
        By implementation and dtype: "error", the largest over the output and all gradients, and
        "mode", how it ran; or "refused", with what it said.
    """
    results: dict[str, Any] = {}
    for implementation in IMPLEMENTATIONS:
        for dtype in ("bfloat16", "float32"):
            entry: dict[str, Any]
            try:
                with simulated(implementation) as mode:
                    error = _error(op, implementation, jnp.dtype(dtype))
                entry = {"error": error, "mode": mode}
            except (ValueError, NotImplementedError) as refusal:
                entry = {"refused": str(refusal).splitlines()[0]}
            results.setdefault(implementation, {})[dtype] = entry
            if on_done is not None:
                on_done()
    return results


def _error(op: str, implementation: str, dtype: Any) -> float:
    module: Any = experts if op == "grouped_matmul" else attention
    arguments = expert_inputs(_EXPERTS, 0, dtype) if op == "grouped_matmul" else _attention(dtype)

    def run(name: str, *values: Any) -> Any:
        layer = module.ours(name, "feed_forward") if op == "grouped_matmul" else module.ours(name)
        return jax.jit(module.forward_and_backward(layer))(*values)

    got = run(implementation, *arguments)
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            arguments,
        )
        right = jax.tree.map(np.asarray, run("reference", *wide))
    return relative_error(got, right)


def expert_inputs(case: ExpertCase, seed: int, dtype: Any) -> tuple[Any, ...]:
    """Inputs, up, down, gates, plan and the gradient of the output, of unit scale."""
    keys = jax.random.split(jax.random.key(seed + 1), 5)
    inputs, up, down, gates = (
        jax.random.normal(key, shape.shape, shape.dtype)
        for key, shape in zip(keys, experts.float_shapes(case, dtype), strict=False)
    )
    gradient = jax.random.normal(keys[4], inputs.shape, dtype)
    scaled = (up / case.width**0.5).astype(dtype), (down / case.hidden**0.5).astype(dtype)
    return inputs, *scaled, jax.nn.softmax(gates), case.plan(seed + 1), gradient


def attention_inputs(
    seed: int, batch: int, length: int, heads: int, width: int, dtype: Any
) -> tuple[Any, ...]:
    """Query, key, value and the gradient of the output."""
    keys = jax.random.split(jax.random.key(seed + 1), 4)
    return tuple(jax.random.normal(key, (batch, length, heads, width), dtype) for key in keys)


def _attention(dtype: Any) -> tuple[Any, ...]:
    return attention_inputs(0, 1, _LENGTH, _HEADS, _WIDTH, dtype)
