from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.benchmarks.timing import relative_error, time_interleaved


def test_contenders_get_the_same_fresh_data_in_turn() -> None:
    seen: list[tuple[str, float]] = []

    def contender(name: str):
        def run(x):
            seen.append((name, float(x[0])))
            return 2 * x

        return run

    def inputs(number: int):
        return (jnp.full((4,), float(number)),)

    rounds: list[int] = []
    times = time_interleaved(
        {"a": contender("a"), "b": contender("b")},
        inputs,
        rounds=2,
        calls=3,
        expected=lambda x: 2 * x,
        on_round=lambda: rounds.append(1),
    )
    assert seen[:2] == [("a", -1.0), ("b", -1.0)]
    assert seen[2:8] == [("a", 0.0)] * 3 + [("b", 0.0)] * 3
    assert seen[8:] == [("b", 1.0)] * 3 + [("a", 1.0)] * 3
    assert len(rounds) == len(times["a"].seconds) == 2
    assert times["b"].errors == (0.0, 0.0)
    assert times["a"].median > 0


def test_wrong_results_show() -> None:
    def inputs(number: int):
        return (jax.random.normal(jax.random.key(number + 1), (8,)),)

    times = time_interleaved({"a": lambda x: x + 1}, inputs, rounds=1, expected=lambda x: x)
    assert times["a"].errors[0] > 0.1


def test_errors_are_relative_and_see_what_is_not_finite() -> None:
    right = {"a": np.full(10_000, 2.0), "b": np.ones(3)}
    assert relative_error(right, right) == 0
    assert relative_error({"a": right["a"] * 1.5, "b": right["b"]}, right) == pytest.approx(0.5)
    broken = np.ones(10_000, np.float32)
    broken[77] = np.nan
    assert relative_error({"a": broken, "b": right["b"]}, right) == float("inf")
    with pytest.raises(ValueError, match="shapes"):
        relative_error({"a": np.ones(3), "b": np.ones(3)}, right)
