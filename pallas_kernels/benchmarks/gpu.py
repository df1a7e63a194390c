"""Times on a GPU beside the peers that can be imported there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.benchmarks import torch_peers
from pallas_kernels.benchmarks.cases import EXPERT_CASES, TIMED_ATTENTION_CASES
from pallas_kernels.benchmarks.numerics import attention_inputs, expert_inputs
from pallas_kernels.benchmarks.programs import attention, experts
from pallas_kernels.benchmarks.static import DIRECTIONS, NOT_MEASURED
from pallas_kernels.benchmarks.timing import Times, time_interleaved

# bfloat16 results of sums of thousands of products, of any contender.
TOLERANCE = 2e-2
EARLY_EXIT = 2.0**-12
_EXPERT_PEERS = ("ragged_dot", "tokamax")
_ATTENTION_PEERS = ("cudnn",)


def gpu_times(
    op: str,
    cases: Sequence[str],
    rounds: int,
    calls: int = 10,
    on_round: Callable[[], None] | None = None,
) -> dict[str, Any] | str:
    """Times of ours and of the peers, by case and direction; or "not measured" without a GPU.

    Args:
        op: "grouped_matmul" or "stickbreaking_attention".
        cases: names of cases.
        rounds: of all contenders, each on fresh random data.
        calls: in a row, for one figure.
        on_round: called after each round.
    """
    if jax.default_backend() != "gpu":
        return f"{NOT_MEASURED}: no GPU at hand"
    measure = _experts if op == "grouped_matmul" else _attention
    results = {
        case: {
            direction: measure(case, direction, rounds, calls, on_round) for direction in DIRECTIONS
        }
        for case in cases
    }
    if op == "grouped_matmul":
        return {**results, "summary": _summary(results)}
    return results


def _experts(
    name: str, direction: str, rounds: int, calls: int, on_round: Callable[[], None] | None
) -> dict[str, Any]:
    case = EXPERT_CASES[name]
    forward = direction == "forward"
    layers = {"ours": experts.ours("gpu", case.kind)}
    layers |= {
        peer: experts.with_copies(experts.PRODUCTS[peer], case.kind) for peer in _EXPERT_PEERS
    }
    count = 5 if forward else 6

    def inputs(seed: int) -> tuple[Any, ...]:
        return expert_inputs(case, seed, jnp.bfloat16)[:count]

    def run(layer: Any) -> Any:
        return jax.jit(layer if forward else experts.forward_and_backward(layer))

    right = run(experts.ours("xla", case.kind))
    contenders = {name: run(layer) for name, layer in layers.items()}
    if case.kind == "feed_forward":
        contenders["scattermoe"] = torch_peers.scattermoe(direction)
    result = _compare(contenders, inputs, right, rounds, calls, on_round)
    rate = _dense_rate(case.slots, case.width, case.hidden, rounds, calls)
    flops = case.flops * (1 if forward else 3)
    for entry in result.values():
        if "seconds" in entry:
            entry["share_of_dense_rate"] = flops / entry["seconds"] / rate
    return {**result, "dense_flops_per_second": rate}


def _dense_rate(rows: int, width: int, columns: int, rounds: int, calls: int) -> float:
    """FLOP/s of one dense product of the same size, which cuBLAS computes."""

    def inputs(seed: int) -> tuple[Any, Any]:
        left, right = jax.random.split(jax.random.key(seed + 1))
        return (
            jax.random.normal(left, (rows, width), jnp.bfloat16),
            jax.random.normal(right, (width, columns), jnp.bfloat16),
        )

    times = time_interleaved({"dense": jax.jit(jnp.dot)}, inputs, rounds=rounds, calls=calls)
    return 2 * rows * width * columns / times["dense"].median


def _attention(
    name: str, direction: str, rounds: int, calls: int, on_round: Callable[[], None] | None
) -> dict[str, Any]:
    case = TIMED_ATTENTION_CASES[name]
    forward = direction == "forward"
    count = 3 if forward else 4

    def run(attend: Any) -> Any:
        return jax.jit(attend if forward else attention.forward_and_backward(attend))

    def inputs(seed: int) -> tuple[Any, ...]:
        return attention_inputs(
            seed, case.batch, case.length, case.heads, case.width, jnp.bfloat16
        )[:count]

    ours = {
        "ours": run(attention.ours("gpu")),
        "ours_early_exit": run(attention.ours("gpu", EARLY_EXIT)),
    }
    right = run(attention.ours("xla"))
    result = _compare(ours, inputs, right, rounds, calls, on_round)
    # Softmax attention computes something else: it is timed, and its results are its own.
    peers = {peer: run(attention.PEERS[peer]) for peer in _ATTENTION_PEERS}
    result |= _compare(peers, inputs, None, rounds, calls, on_round)
    triton = {"triton": torch_peers.triton_stickbreaking(direction)}
    return result | _compare(triton, inputs, right, rounds, calls, on_round)


def _compare(
    contenders: dict[str, Any],
    inputs: Callable[[int], Sequence[Any]],
    right: Any,
    rounds: int,
    calls: int,
    on_round: Callable[[], None] | None,
) -> dict[str, Any]:
    """Times those contenders that can run; says of the others why not."""
    able, result = {}, {}
    warm = tuple(inputs(-1))
    for name, run in contenders.items():
        try:
            jax.block_until_ready(run(*warm))
            able[name] = run
        # Whatever a peer raises where it is absent or unable is a line of the results.
        except Exception as error:  # noqa: BLE001
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            result[name] = {"error": f"{NOT_MEASURED}: {reason}"}
    if able:
        times = time_interleaved(
            able, inputs, rounds=rounds, calls=calls, expected=right, on_round=on_round
        )
        result |= {name: _figures(t) for name, t in times.items()}
    return result


def _figures(times: Times) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "seconds": times.median,
        "fastest": min(times.seconds),
        "slowest": max(times.seconds),
        "rounds": len(times.seconds),
    }
    if times.errors:
        worst = max(times.errors)
        figures |= {"error": worst, "correct": bool(worst < TOLERANCE)}
    return figures


def _summary(results: dict[str, Any]) -> dict[str, Any]:
    """Speed over the best peer, and how much slower skewed load is."""
    speedups = {}
    for case, by_direction in results.items():
        for direction, entry in by_direction.items():
            peers = [
                e["seconds"]
                for n, e in entry.items()
                if n != "ours" and isinstance(e, dict) and e.get("correct")
            ]
            if peers and entry["ours"].get("correct"):
                speedups[f"{case}.{direction}"] = min(peers) / entry["ours"]["seconds"]
    summary: dict[str, Any] = {"speed_over_best_peer": speedups}
    if speedups:
        logs = [math.log(value) for value in speedups.values()]
        summary["geometric_mean"] = math.exp(statistics.mean(logs))
    if "molm" in results and "skewed" in results:
        summary["skewed_over_balanced"] = {
            direction: results["skewed"][direction]["ours"].get("seconds", math.nan)
            / results["molm"][direction]["ours"].get("seconds", math.nan)
            for direction in DIRECTIONS
        }
    return summary
