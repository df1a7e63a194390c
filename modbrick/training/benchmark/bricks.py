"""Measures what customized bricks cost: in training, and in a batch where each row has its own."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks import BrickConfig, LoRA, initial_bricks, plugged
from modbrick.config.families import dense
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.training.benchmark.cases import Case
from modbrick.training.benchmark.measurement import CaseTraining

ATTENTION = tuple(f"layer.*.attention.{name}" for name in ("query", "key", "value", "output"))
FEED_FORWARD = tuple(f"layer.*.feed_forward.{name}" for name in ("up", "down"))


def training_cost(case: Case, *, rounds: int, steps: int) -> dict[str, Any]:
    """Trains a LoRA on a frozen model and the whole model in turn; returns figures, JSON-able.

    Args:
      case: the model and its batches.
      rounds: of steps of each; times are medians over rounds, ratios medians of their ratios.
      steps: in a round.
    """
    contenders = {
        "whole": CaseTraining(case),
        "lora": CaseTraining(case, bricks={"lora": BrickConfig(ATTENTION, LoRA(rank=8))}),
    }
    memory = {name: training.memory_bytes() for name, training in contenders.items()}
    seconds = in_turn(
        {name: functools.partial(each.train, steps) for name, each in contenders.items()}, rounds
    )
    return {
        "case": dataclasses.asdict(case),
        "seconds_per_step": {name: statistics.median(found) for name, found in seconds.items()},
        "memory_bytes": memory,
        "time_ratio": ratio(seconds["lora"], seconds["whole"]),
        "memory_ratio": memory["lora"] / memory["whole"],
        "rounds": seconds,
    }


def mixing_cost(case: Case, *, rows: int, length: int, rounds: int) -> dict[str, Any]:
    """Runs a batch in which each row has a LoRA of its own, and the same with one for all, in turn.

    The model is a dense one of the case's sizes, the LoRAs of rank 8 on all its projections.

    Results are compared first: a row with its own LoRA gets what it gets from that one alone.

    Args:
      case: the sizes.
      rows: of the batch, and LoRAs.
      length: tokens in a row.
      rounds: calls of each.

    Raises:
      RuntimeError: the results disagree.
    """
    config = dense(
        vocabulary=case.vocabulary,
        width=case.width,
        layers=case.layers,
        heads=case.heads,
        feed_forward_width=case.feed_forward_width,
        dtype="float32",
    )
    lora = BrickConfig(ATTENTION + FEED_FORWARD, LoRA(rank=8))
    decoder = functional_decoder(config)
    parameters = initial_parameters(config, jax.random.key(0))
    random = np.random.default_rng(0)
    bricks = {f"lora{number}": lora for number in range(rows)}
    values = {
        path: jnp.asarray(value + random.normal(0.0, 0.02, value.shape), jnp.float32)
        for path, value in initial_bricks(config, bricks, jax.random.key(1)).items()
    }
    many, one = plugged(config, bricks, values), plugged(config, {"lora0": lora}, values)
    ids = jnp.arange(rows)[:, None, None]

    @jax.jit
    def run(parameters: Any, tokens: Any, bricks: Any, ids: Any) -> jax.Array:
        return decoder.bind(parameters).features(tokens, bricks=bricks, brick_ids=ids).hidden

    tokens = jnp.asarray(random.integers(0, case.vocabulary, (rows, length)), jnp.int32)
    mixed, alone = run(parameters, tokens, many, ids), run(parameters, tokens, one, None)
    name = f"lora{rows - 1}"
    last = run(parameters, tokens, plugged(config, {name: lora}, values), None)
    error = max(
        float(jnp.abs(mixed[row] - whole[row]).max() / jnp.abs(whole[row]).max())
        for row, whole in ((0, alone), (rows - 1, last))
    )
    if not error < 1e-4:
        raise RuntimeError(f"a row in a mixed batch differs from itself alone by {error:.1e}")

    def timed(bricks: Any, ids: Any) -> float:
        tokens = jnp.asarray(random.integers(0, case.vocabulary, (rows, length)), jnp.int32)
        start = time.perf_counter()
        run(parameters, tokens, bricks, ids).block_until_ready()
        return time.perf_counter() - start

    seconds = in_turn(
        {
            "many": lambda: timed(many, ids),
            "one": lambda: timed(one, None),
            "none": lambda: timed(None, None),
        },
        rounds,
    )
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(many))
    return {
        "rows": rows,
        "length": length,
        "case": dataclasses.asdict(case),
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "time_ratio_to_one": ratio(seconds["many"], seconds["one"]),
        "time_ratio_to_none": ratio(seconds["many"], seconds["none"]),
        "memory_bytes": {
            "bricks": size,
            "many": _memory(run, parameters, tokens, many, ids),
            "one": _memory(run, parameters, tokens, one, None),
        },
        "error": error,
        "rounds": seconds,
    }


def _memory(run: Any, *arguments: Any) -> int:
    needed = run.lower(*arguments).compile().memory_analysis()
    assert needed is not None, "compilers of this library's backends say it"
    return int(needed.argument_size_in_bytes + needed.temp_size_in_bytes)


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each contender, in turn in each round; a first one does not count."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
    return seconds


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Returns the median over rounds of our time divided by theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
