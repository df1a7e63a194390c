"""Times of contenders, taken in turn on fresh random data, every result checked."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
    """Times of one contender.

    Attributes:
        seconds: of a call, one figure a round.
        errors: the largest relative error of a result, one figure a round; empty if unchecked.
    """

    seconds: tuple[float, ...]
    errors: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)


def relative_error(actual: Any, expected: Any) -> float:
    """The largest norm of a difference over the norm of what is expected, over all arrays.

    Infinite if a value is not finite: a maximum over float32 values would drop NaN on CPUs.

    Raises:
        ValueError: the results differ in number or shapes.
    """
    ours, theirs = jax.tree.leaves(actual), jax.tree.leaves(expected)
    shapes = [np.shape(x) for x in ours], [np.shape(x) for x in theirs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the results have shapes {shapes[0]}, expected are {shapes[1]}")
    worst = 0.0
    for got, right in zip(ours, theirs, strict=True):
        a = np.asarray(got, np.float64).ravel()
        b = np.asarray(right, np.float64).ravel()
        if not np.isfinite(a).all():
            return float("inf")
        worst = max(worst, float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)))
    return worst


def time_interleaved(
    contenders: Mapping[str, Callable[..., Any]],
    inputs: Callable[[int], Sequence[Any]],
    *,
    rounds: int,
    calls: int = 1,
    expected: Callable[..., Any] | None = None,
    on_round: Callable[[], None] | None = None,
) -> dict[str, Times]:
    """Times contenders in turn, so that what else the machine does falls on all of them.

    Args:
        contenders: compiled functions by name.
        inputs: makes the arguments of a round from its number.
        rounds: how many; each starts with another contender.
        calls: in a row, for one figure: more where starting one takes as long as running it.
        expected: what all of them should compute; results are checked in every round.
        on_round: called after each.

    Returns:
        The times by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    warm = jax.block_until_ready(tuple(inputs(-1)))
    for run in contenders.values():
        jax.block_until_ready(run(*warm))
    for number in range(rounds):
        arguments = jax.block_until_ready(tuple(inputs(number)))
        right = None if expected is None else expected(*arguments)
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run = contenders[name]
            start = time.perf_counter()
            results = [run(*arguments) for _ in range(calls)]
            jax.block_until_ready(results)
            seconds[name].append((time.perf_counter() - start) / calls)
            if right is not None:
                errors[name].append(relative_error(results[-1], right))
            del results
        if on_round is not None:
            on_round()
    return {name: Times(tuple(seconds[name]), tuple(errors[name])) for name in names}
