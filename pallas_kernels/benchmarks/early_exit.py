"""What the early exit of stick-breaking attention saves: blocks passed over, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.stickbreaking_attention import stickbreaking_attention

# Queries and keys of a block: of the XLA path, and of the GPU kernels.
BLOCKS = {"xla": (64, 128), "gpu": (128, 64)}


def times_on_random_data(length: int, tolerances: Sequence[float], rounds: int) -> dict[str, Any]:
    """Times of the operation alone, forward and with the backward pass; see `relative_times`."""
    random = np.random.default_rng(0)
    arrays = [jnp.asarray(random.standard_normal((1, length, 4, 64)), jnp.float32) for _ in "qkvo"]

    def forward(tolerance: float) -> Callable[[], Any]:
        call = jax.jit(lambda q, k, v: stickbreaking_attention(q, k, v, tolerance=tolerance))
        return lambda: call(*arrays[:3])

    def both(tolerance: float) -> Callable[[], Any]:
        def run(q: Any, k: Any, v: Any, d_output: Any) -> Any:
            def output(*x: Any) -> jax.Array:
                return stickbreaking_attention(*x, tolerance=tolerance).output

            result, pull = jax.vjp(output, q, k, v)
            return result, pull(d_output)

        call = jax.jit(run)
        return lambda: call(*arrays)

    return {
        "length": length,
        "shape": "B 1, H 4, D 64, float32",
        "forward": relative_times(forward, tolerances, rounds),
        "forward_and_backward": relative_times(both, tolerances, rounds),
    }


def skipped_fractions(weights: np.ndarray, sizes: tuple[int, int], tolerance: float) -> list[float]:
    """The fraction of blocks in sight that each head passes over.

    Args:
        weights: of attention, [H, S, S], queries by keys.
        sizes: queries and keys of a block.
        tolerance: of the early exit.
    """
    rows, keys = sizes
    length = weights.shape[-1]
    fractions = []
    for head in weights.astype(np.float64):
        # What is left in front of the blocks that end where a key does, nearest first.
        taken = head[:, ::-1].cumsum(axis=1)[:, ::-1]
        in_sight = visited = 0
        for first in range(0, length, rows):
            ends = range(first + rows, 0, -keys)
            in_sight += len(ends)
            for end in ends:
                left = 1 - (taken[first : first + rows, end] if end < length else 0)
                if np.max(left) < tolerance:
                    break
                visited += 1
        fractions.append(1 - visited / in_sight)
    return fractions


def relative_times(
    make: Callable[[float], Callable[[], Any]], tolerances: Sequence[float], rounds: int
) -> dict[str, Any]:
    """Seconds without a tolerance, and how many times faster it is with each of them.

    Args:
        make: the call to be timed, from its tolerance.
        tolerances: to be compared with a tolerance of 0, all timed in turn.
        rounds: of timing; the fastest counts.
    """
    calls = {tolerance: make(tolerance) for tolerance in (0.0, *tolerances)}
    seconds = dict.fromkeys(calls, np.inf)
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for tolerance, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[tolerance] = min(seconds[tolerance], time.perf_counter() - start)
    return {
        "seconds": round(seconds[0.0], 4),
        "speed_up": {str(t): round(seconds[0.0] / seconds[t], 2) for t in tolerances},
    }
