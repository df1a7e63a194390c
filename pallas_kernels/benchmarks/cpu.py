"""The XLA paths on a CPU, as ratios to what the same machine does at best at the same moment."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.benchmarks.cases import ExpertCase
from pallas_kernels.benchmarks.numerics import attention_inputs, expert_inputs
from pallas_kernels.benchmarks.programs import attention, experts
from pallas_kernels.benchmarks.timing import Times, time_interleaved

EXPERTS = ExpertCase("cpu", "feed_forward", 2048, 2, 512, 1024, 16)
LENGTHS = (1024, 2048, 4096)
_HEADS, _WIDTH = 4, 64


def _ratio(over: Times, under: Times) -> float:
    """The median, over rounds, of one contender's time over another's."""
    return statistics.median(a / b for a, b in zip(over.seconds, under.seconds, strict=True))


def cpu_experts(rounds: int, on_round: Callable[[], None] | None = None) -> dict[str, Any]:
    """The share of the dense product's rate that sparse experts reach.

    The dense contender does as many operations in products of [T*K, D] and [D, F] matrices.
    """

    def dense(inputs: Any, up: Any, down: Any, gates: Any, plan: Any, gradient: Any) -> Any:
        del gates, gradient
        rows = jnp.tile(inputs, (plan.experts_per_token, 1))
        return (rows @ up[0]) @ down[0]

    def dense_thrice(inputs: Any, up: Any, down: Any, gates: Any, plan: Any, gradient: Any) -> Any:
        del gates
        rows = jnp.tile(inputs, (plan.experts_per_token, 1))
        upstream = jnp.tile(gradient, (plan.experts_per_token, 1))
        hidden = rows @ up[0]
        d_hidden = upstream @ down[0].T
        return hidden @ down[0], d_hidden @ up[0].T, hidden.T @ upstream, rows.T @ d_hidden

    layer = experts.ours("xla", "feed_forward")
    both = experts.forward_and_backward(layer)
    results = {}
    for direction, ours, best in (
        ("forward", lambda *a: layer(*a[:5]), dense),
        ("forward_backward", both, dense_thrice),
    ):
        times = time_interleaved(
            {"ours": jax.jit(ours), "dense": jax.jit(best)},
            lambda seed: expert_inputs(EXPERTS, seed, jnp.float32),
            rounds=rounds,
            on_round=on_round,
        )
        results[direction] = {
            "share_of_dense_rate": _ratio(times["dense"], times["ours"]),
            "seconds": times["ours"].median,
            "dense_seconds": times["dense"].median,
        }
    return results


def cpu_attention(rounds: int, on_round: Callable[[], None] | None = None) -> dict[str, Any]:
    """Time and temporary memory of the blocked path over those of the S x S form, by S."""
    results: dict[str, Any] = {}
    for length in LENGTHS:
        shape = jax.ShapeDtypeStruct((1, length, _HEADS, _WIDTH), jnp.float32)
        for direction in ("forward", "forward_backward"):
            forward = direction == "forward"
            compiled: dict[str, Any] = {}
            for name in ("xla", "reference"):
                attend = attention.ours(name)
                run = attend if forward else attention.forward_and_backward(attend)
                compiled[name] = jax.jit(run).lower(*(shape,) * (3 if forward else 4)).compile()

            def inputs(seed: int, length: int = length, count: int = 3 if forward else 4) -> Any:
                return attention_inputs(seed, 1, length, _HEADS, _WIDTH, jnp.float32)[:count]

            times = time_interleaved(compiled, inputs, rounds=rounds, on_round=on_round)
            memory = {n: c.memory_analysis().temp_size_in_bytes for n, c in compiled.items()}
            results.setdefault(f"s{length}", {})[direction] = {
                "time_over_square_form": _ratio(times["xla"], times["reference"]),
                "memory_over_square_form": memory["xla"] / memory["reference"],
                "seconds": times["xla"].median,
                "square_form_seconds": times["reference"].median,
            }
    return results
