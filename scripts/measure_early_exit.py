"""Measures what the early exit of stick-breaking attention saves on this machine.

    python scripts/measure_early_exit.py --json=FILE [--checkpoint=DIR --data=DIR]
        [--lengths=2048,4096 --tolerances=0.00390625,0.000244140625]

On random queries and keys, and on a trained model's held-out text: the fraction of blocks of keys
that are passed over, by the block sizes of an implementation, and the time against a tolerance of
0, both timed in turn. Rows of text are single documents, or parts of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from modbrick import command_line
from modbrick.checkpoints import describe, locate
from modbrick.data import Dataset, evaluation_batches
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import enable_compilation_cache
from modbrick.models import load_model, load_parameters
from modbrick.training.evaluation import evaluation_step
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's or a model's directory.")
DATA = flags.DEFINE_string("data", None, "Directory of a prepared data set.")
LENGTHS = flags.DEFINE_list("lengths", ["2048", "4096"], "Tokens in a row.")
TOLERANCES = flags.DEFINE_list("tolerances", [str(2**-8), str(2**-12)], "Of the early exit.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of timing; the fastest counts.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 2, "Rows of text for each length.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for the results.", required=True)

# Rows and keys of a block: of the XLA path, and of the GPU kernels.
BLOCKS = {"xla": (64, 128), "gpu": (128, 64)}
# Blocks are counted from S x S weights of all heads and layers: beyond this, gigabytes.
LONGEST_COUNTED = 4096


def main(argv: Sequence[str]) -> None:
    """Measures and writes the results."""
    del argv
    command_line.check_output(JSON)
    if bool(CHECKPOINT.value) != bool(DATA.value):
        raise InputError("a model needs text: name both --checkpoint=DIR and --data=DIR, or none")
    try:
        lengths = [int(length) for length in LENGTHS.value]
        tolerances = [float(tolerance) for tolerance in TOLERANCES.value]
    except ValueError as error:
        raise InputError(f"--lengths and --tolerances are lists of numbers: {error}") from None
    enable_compilation_cache()
    results: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rounds": ROUNDS.value,
        "random": [on_random_data(length, tolerances) for length in lengths],
    }
    if CHECKPOINT.value:
        description = describe(CHECKPOINT.value)
        results["model"] = {
            "trained_steps": description.step,
            "trained_context": description.metadata.model.context,
            "lengths": [on_text(length, tolerances) for length in lengths],
        }
    Path(JSON.value).write_text(json.dumps(results, indent=1) + "\n")


def on_random_data(length: int, tolerances: Sequence[float]) -> dict[str, Any]:
    """Times the op alone, forward and with the backward pass."""
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
        "forward": relative_times(forward, tolerances),
        "forward_and_backward": relative_times(both, tolerances),
    }


def on_text(length: int, tolerances: Sequence[float]) -> dict[str, Any]:
    """Counts blocks from the attention weights of a model, and times its evaluation."""
    assert DATA.value, "checked by main"
    dataset = Dataset.open(DATA.value)
    rows = single_documents(dataset, length)
    counted = count_skipped(rows["tokens"], tolerances) if length <= LONGEST_COUNTED else {}
    found = locate(CHECKPOINT.value)
    description, parameters = describe(found), load_parameters(found)
    losses = {}

    def evaluation(tolerance: float) -> Callable[[], Any]:
        execution = ExecutionConfig(attention_tolerance=tolerance)
        step = evaluation_step(description.metadata.model, execution)
        losses[tolerance] = float(np.mean(step(parameters, rows)[0]))
        return lambda: step(parameters, rows)

    return {
        "length": length,
        "rows": len(rows["tokens"]),
        "tolerances": list(tolerances),
        "skipped": counted or "not counted: the weights would not fit into memory",
        "evaluation": relative_times(evaluation, tolerances),
        "loss": {str(tolerance): loss for tolerance, loss in losses.items()},
    }


def count_skipped(rows: np.ndarray, tolerances: Sequence[float]) -> dict[str, Any]:
    """The fraction of blocks that the heads of the model pass over, by implementation."""
    model = load_model(CHECKPOINT.value)
    weigh = jax.jit(lambda tokens: model(tokens, capture=("attention_weights",)).captured)
    skipped: dict[str, list[Any]] = {name: [] for name in BLOCKS}
    for tokens in rows:
        for layers in weigh(tokens[None])["attention_weights"].values():
            for weights in np.asarray(layers).reshape(-1, *layers.shape[-3:]):
                for name, sizes in BLOCKS.items():
                    skipped[name].append([skipped_fractions(weights, sizes, t) for t in tolerances])
    return {
        name: {
            "rows_and_keys_of_a_block": BLOCKS[name],
            "mean": np.mean(values, axis=(0, 2)).round(4).tolist(),
            # [rows of text x layers, tolerances, heads] to the extremes over layers and heads.
            "least": np.min(values, axis=(0, 2)).round(4).tolist(),
            "most": np.max(values, axis=(0, 2)).round(4).tolist(),
        }
        for name, values in skipped.items()
    }


def single_documents(dataset: Dataset, length: int) -> dict[str, Any]:
    """Rows that one document fills."""
    found = []
    for batch in evaluation_batches(dataset, sequence_length=length, batch_size=1):
        if (batch["segment_ids"] == batch["segment_ids"][0, 0]).all():
            found.append({name: batch[name] for name in batch if name != "domains"})
        if len(found) == ROWS.value:
            return {name: np.concatenate([row[name] for row in found]) for name in found[0]}
    raise InputError(f"--data: fewer than {ROWS.value} documents fill a row of {length} tokens")


def skipped_fractions(weights: np.ndarray, sizes: tuple[int, int], tolerance: float) -> list[float]:
    """The fraction of blocks in sight that each head `[S, S]` of `[H, S, S]` passes over."""
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
    make: Callable[[float], Callable[[], Any]], tolerances: Sequence[float]
) -> dict[str, Any]:
    """Seconds without a tolerance, and how many times faster it is with each of them."""
    calls = {tolerance: make(tolerance) for tolerance in (0.0, *tolerances)}
    seconds = dict.fromkeys(calls, np.inf)
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(ROUNDS.value):
        for tolerance, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[tolerance] = min(seconds[tolerance], time.perf_counter() - start)
    return {
        "seconds": round(seconds[0.0], 4),
        "speed_up": {str(t): round(seconds[0.0] / seconds[t], 2) for t in tolerances},
    }


if __name__ == "__main__":
    command_line.run(main)
