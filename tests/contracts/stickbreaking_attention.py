"""Contract of every implementation of stick-breaking attention.

A test module subclasses `StickbreakingAttentionContract` and names its implementation. One that
does not compute in float32 also names the dtype that stands for it: inputs are then rounded to it
first, and errors are those of its rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.stickbreaking_attention import stickbreaking_attention
from tests.compilation import OPTIMISED
from tests.contracts import exact_attention
from tests.contracts.sweep import sweep

NAMES = ("output", "remainder", "d_query", "d_key", "d_value")


@dataclasses.dataclass(frozen=True)
class Case:
    """Shapes, and the options of the call. Options that are arrays are made by `make`."""

    batch: int = 2
    query_length: int = 70
    key_length: int = 70
    heads: int = 4
    groups: int = 2
    width: int = 16
    value_width: int = 16
    dtype: Any = np.float32
    padding: bool = False
    segments: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def make(self) -> tuple[tuple[np.ndarray, ...], dict[str, Any]]:
        """Float64 arguments and cotangents, exact in the dtype; and the keyword arguments."""
        random = np.random.default_rng(0)
        lengths, keys = (self.batch, self.query_length), (self.batch, self.key_length)
        shapes = (
            (*lengths, self.heads, self.width),
            (*keys, self.groups, self.width),
            (*keys, self.groups, self.value_width),
            (*lengths, self.heads, self.value_width),
            (*lengths, self.heads),
        )
        # Keys with a common part, negative for most queries, let the stick reach far.
        arrays = [random.standard_normal(shape) for shape in shapes]
        arrays[1] = arrays[1] + arrays[0].mean() - 0.5
        arrays = [np.asarray(a.astype(self.dtype), np.float64) for a in arrays]
        options = dict(self.options)
        if self.segments:
            ids = np.sort(random.integers(0, 4, keys), axis=1).astype(np.int32)
            options["key_segment_ids"] = ids
            options["query_segment_ids"] = ids[:, -self.query_length :]
        if self.padding:
            options["key_mask"] = random.random(keys) < 0.7
        return tuple(arrays), options


# Odd sizes are no multiples of blocks of 16, 64 or 128. Cases share shapes where they can.
CASES = {
    "strict": Case(),
    "attend_current": Case(options=(("attend_current", True),)),
    "scale": Case(options=(("scale", 1.3), ("attend_current", True))),
    "odd_sizes": Case(1, 500, 500, 7, 7, 20, 24, options=(("attend_current", True),)),
    "grouped_long": Case(1, 300, 300, 6, 2, 20, 9),
    "segments": Case(2, 150, 150, 4, 2, segments=True),
    "padding": Case(2, 150, 150, 4, 2, padding=True, options=(("attend_current", True),)),
    "segments_and_padding": Case(2, 150, 150, 4, 2, padding=True, segments=True),
    "window": Case(1, 300, 300, 2, 1, options=(("window", 77), ("attend_current", True))),
    "window_of_one": Case(options=(("window", 1), ("attend_current", True))),
    "window_sees_nothing": Case(options=(("window", 1),)),
    "fewer_queries": Case(2, 30, 150, 4, 2, segments=True),
    "more_queries": Case(2, 150, 30, 4, 2, options=(("attend_current", True),)),
    "offset": Case(2, 30, 150, 4, 2, options=(("query_offset", 61), ("window", 50))),
    "negative_offset": Case(options=(("query_offset", -20),)),
    "beyond_the_keys": Case(2, 30, 40, 4, 2, options=(("query_offset", 60),)),
    "one_query": Case(2, 1, 150, 4, 2, options=(("query_offset", 100),)),
    "one_key": Case(2, 30, 1, 4, 2),
    "one_of_each": Case(1, 1, 1, 1, 1, 3, 2, options=(("attend_current", True),)),
    # A cache with a window, more keys than queries, and keys beyond the last query.
    "everything": Case(
        *(2, 70, 150, 4, 2, 20, 24),
        padding=True,
        segments=True,
        options=(("scale", 0.3), ("window", 77), ("query_offset", 61), ("attend_current", True)),
    ),
    "bfloat16": Case(2, 150, 150, 4, 2, dtype=jnp.bfloat16, segments=True),
    "float16": Case(2, 70, 70, 4, 2, dtype=np.float16),
}


# Between them every option, several blocks of queries and of keys, and a single one.
TESTED = (
    *("everything", "grouped_long", "segments_and_padding", "more_queries", "one_of_each"),
    "bfloat16",
)

EARLY_EXIT_CASES = (
    ("odd_sizes", 2**-12),
    ("grouped_long", 0.3),
    ("segments_and_padding", 0.02),
    ("window", 0.02),
    ("fewer_queries", 0.1),
    ("one_query", 2**-12),
    ("bfloat16", 0.02),
)


def _run(arrays, cotangents, options, static, implementation):
    def call(query, key, value):
        return stickbreaking_attention(
            query, key, value, **options, **dict(static), implementation=implementation
        )

    result, pull = jax.vjp(call, *arrays)
    return (*result, *pull(type(result)(*cotangents)))


_compiled = functools.partial(jax.jit, _run, static_argnames=("static", "implementation"))
_quick, _optimised = _compiled(), _compiled(compiler_options=OPTIMISED)


@functools.partial(jax.jit, static_argnames=("static", "implementation"))
def _attend(query, key, value, *, static, implementation):
    return stickbreaking_attention(query, key, value, **dict(static), implementation=implementation)


def run(
    implementation: str, arrays, options: dict[str, Any], dtype, *, optimised: bool = False
) -> list[np.ndarray]:
    """Output, remainder and gradients as float64, computed in `dtype`.

    Code that LLVM optimises rounds less: where keys are as large as 1e30 that shows.
    """
    static = tuple((k, v) for k, v in options.items() if not isinstance(v, np.ndarray))
    traced = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    query, key, value, d_output, d_remainder = (jnp.asarray(a, dtype) for a in arrays)
    d_remainder = d_remainder.astype(jnp.promote_types(dtype, jnp.float32))
    compiled = _optimised if optimised else _quick
    results = compiled((query, key, value), (d_output, d_remainder), traced, static, implementation)
    return [np.asarray(result, np.float64) for result in results]


@functools.cache
def oracle(case: Case) -> list[np.ndarray]:
    """Results of the definition in float64, without early exit."""
    return exact_attention.stickbreaking(*case.make())


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Relative error by norms. (`jnp.max` may drop NaN on CPU, so all of this is numpy.)"""
    assert actual.shape == expected.shape, name
    assert np.isfinite(actual).all(), name
    error = np.linalg.norm(actual - expected)
    assert error <= tolerance * np.linalg.norm(expected), (name, error / np.linalg.norm(expected))


def assert_saturated(run: Callable[..., list[np.ndarray]], logit: float) -> None:
    """Asserts that gradients vanish with what a key leaves of the stick.

    All logits are the same. The gradient is a difference of numbers of size |dO V|, which cancel to
    the rounding error of float32 whatever the dtype: the share that a key takes must be as exact.
    """
    random = np.random.default_rng(8)
    width, shape = 32, (1, 128, 1, 32)
    key = np.broadcast_to(random.choice([-1.0, 1.0], width), shape)
    value, d_output = (random.integers(-8, 9, shape) / 4 for _ in "vo")
    arrays = (key, key, value, d_output, np.zeros(shape[:3]))
    _, _, d_query, d_key, _ = run(arrays, {"scale": logit / width})
    size = logit / width * np.abs(np.einsum("bihd,bjhd->bij", d_output, value)).max()
    # 1 - beta is exp(-logit); the sum over the queries adds up their errors.
    bound = size * (np.exp(-logit) + 8 * np.finfo(np.float32).eps)
    assert np.abs(d_query).max() <= 4 * bound
    assert np.abs(d_key).max() <= 4 * bound * np.sqrt(shape[1])


def early_exit_bounds(arrays, options: dict[str, Any], tolerance: float) -> list[np.ndarray]:
    """Largest difference of results with a tolerance from the exact ones (see `reference.py`)."""
    query, key, value, d_output, d_remainder = arrays
    repeats = query.shape[2] // key.shape[2]
    scale = options.get("scale") or 1 / np.sqrt(query.shape[-1])
    spread_value, spread_key = (np.repeat(a, repeats, axis=2) for a in (value, key))
    # Largest magnitude over the keys of what a weight changes: [B, Sq, H].
    products = np.einsum("bihd,bjhd->bhij", d_output, spread_value)
    effect = np.abs(products - d_remainder.swapaxes(1, 2)[..., None]).max(-1).swapaxes(1, 2)
    in_all = tolerance * (2 + np.log(1 / tolerance)) * effect
    d_query = scale * in_all[..., None] * np.abs(spread_key).max(axis=1)[:, None]
    d_key = scale * tolerance * (effect[..., None] * np.abs(query)).sum(1, keepdims=True)
    d_value = tolerance * np.abs(d_output).sum(1, keepdims=True)
    grouped = (query.shape[0], 1, key.shape[2], repeats, -1)
    return [
        tolerance * np.abs(spread_value).max(axis=1)[:, None],
        np.asarray(tolerance),
        d_query,
        d_key.reshape(grouped).sum(3),
        d_value.reshape(grouped).sum(3),
    ]


POSITIONS = np.arange(150)
_DOCUMENTS = dict.fromkeys(("query_segment_ids", "key_segment_ids"), POSITIONS[None] // 40)
# Options, and which keys a query does not see.
UNSEEN = [
    pytest.param(
        {"window": 20, "key_mask": POSITIONS[None] % 3 > 0},
        lambda q, k: (k >= q) | (k <= q - 20) | (k % 3 == 0),
        id="strict_window_and_padding",
    ),
    pytest.param(
        {"attend_current": True, **_DOCUMENTS},
        lambda q, k: (k > q) | (k // 40 != q // 40),
        id="attend_current_and_segments",
    ),
    *(
        pytest.param(options, unseen, marks=pytest.mark.verify, id=name)
        for name, options, unseen in (
            ("strict", {}, lambda q, k: k >= q),
            ("attend_current", {"attend_current": True}, lambda q, k: k > q),
            ("window", {"window": 20}, lambda q, k: k <= q - 20),
            ("segments", _DOCUMENTS, lambda q, k: k // 40 != q // 40),
            ("padding", {"key_mask": POSITIONS[None] >= 30}, lambda q, k: k < 30),
        )
    ),
]


class StickbreakingAttentionContract:
    implementation: str
    dtype: Any = np.float32

    def case(self, name: str) -> Case:
        case = CASES[name]
        return dataclasses.replace(case, dtype=self.dtype) if case.dtype is np.float32 else case

    def tolerance(self, dtype: Any = None) -> float:
        """Relative error that rounding in a dtype explains."""
        # float16 rounds like 2**-11; what it is given here is within its range.
        dtype = self.dtype if dtype is None else dtype
        return {np.float32: 1e-5, np.float16: 5e-3}.get(dtype, 1e-2)

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """An array rounded to the dtype."""
        return np.asarray(array.astype(self.dtype), np.float64)

    def run(self, arrays, options: dict[str, Any], *, optimised: bool = False) -> list[np.ndarray]:
        return run(self.implementation, arrays, options, self.dtype, optimised=optimised)

    def attend(self, query, key, value, **options):
        query, key, value = (jnp.asarray(x, self.dtype) for x in (query, key, value))
        static = tuple(options.items())
        return _attend(query, key, value, static=static, implementation=self.implementation)

    def assert_same(self, one, other) -> None:
        """Asserts that two ways to compute numbers of size 1 agree."""
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=self.tolerance())

    @sweep("name", CASES, TESTED)
    def test_agrees_with_float64(self, name: str) -> None:
        case = self.case(name)
        arrays, options = case.make()
        actual = run(self.implementation, arrays, options, case.dtype)
        for label, mine, exact in zip(NAMES, actual, oracle(case), strict=True):
            assert_close(mine, exact, self.tolerance(case.dtype), label)

    def test_long_rows_stay_exact(self) -> None:
        random = np.random.default_rng(1)
        arrays = [random.standard_normal((1, 1500, 1, 8)) for _ in range(4)]
        # A gradient that all keys share would add up along the row.
        arrays[1] += 0.7
        arrays.append(random.standard_normal((1, 1500, 1)))
        arrays = [self.rounded(array) for array in arrays]
        actual = self.run(arrays, {})
        for label, mine, expected in zip(
            NAMES, actual, exact_attention.stickbreaking(arrays, {}), strict=True
        ):
            assert_close(mine, expected, self.tolerance(), label)

    def test_dtypes(self) -> None:
        x = jnp.ones((1, 5, 2, 4), jnp.bfloat16)
        output, remainder = stickbreaking_attention(x, x, x, implementation=self.implementation)
        assert output.dtype == jnp.bfloat16
        assert remainder.dtype == jnp.float32

    def test_head_reads_its_group(self) -> None:
        random = np.random.default_rng(2)
        query, key, value = (
            random.standard_normal((1, 40, h, 8)).astype(np.float32) for h in (6, 3, 3)
        )
        output, remainder = self.attend(query, key, value)
        for head in range(6):
            group = slice(head // 2, head // 2 + 1)
            alone = self.attend(query[:, :, head : head + 1], key[:, :, group], value[:, :, group])
            for mine, other in ((output, alone.output), (remainder, alone.remainder)):
                self.assert_same(mine[:, :, head], other[:, :, 0])

    def test_query_without_keys(self) -> None:
        random = np.random.default_rng(3)
        arrays = [random.standard_normal((1, 20, 2, 8)) for _ in range(4)]
        arrays.append(random.standard_normal((1, 20, 2)))
        mask = np.arange(20)[None] >= 5
        results = self.run(arrays, {"key_mask": mask})
        output, remainder, d_query, _, _ = results
        assert (output[:, :6] == 0).all()
        assert (remainder[:, :6] == 1).all()
        assert (d_query[:, :6] == 0).all()
        assert (output[:, 6:] != 0).any(axis=(0, 2, 3)).all()

    def test_no_keys_at_all(self) -> None:
        query = np.ones((2, 3, 4, 8))
        empty = np.ones((2, 0, 2, 8))
        output, remainder = self.attend(query, empty, empty)
        np.testing.assert_array_equal(output, np.zeros((2, 3, 4, 8)))
        np.testing.assert_array_equal(remainder, np.ones((2, 3, 4)))

    def test_weights_and_remainder_sum_to_one(self) -> None:
        random = np.random.default_rng(4)
        query, key = (random.standard_normal((2, 200, 2, 8)).astype(np.float32) for _ in "qk")
        output, remainder = self.attend(query, key - 0.5, np.ones((2, 200, 2, 1), np.float32))
        total = output[..., 0].astype(jnp.float32) + remainder
        # Weights and output are each rounded to the dtype, by half an epsilon.
        rounding = float(jnp.finfo(self.dtype).eps)
        np.testing.assert_allclose(total, 1, rtol=max(self.tolerance() / 5, rounding))

    @pytest.mark.parametrize(("options", "unseen"), UNSEEN)
    def test_unseen_keys_have_zero_gradient(self, options, unseen) -> None:
        length, at = len(POSITIONS), 100
        random = np.random.default_rng(5)
        arrays = [jnp.asarray(random.standard_normal((1, length, 2, 8)), self.dtype) for _ in "qkv"]

        def total(query, key, value):
            output, remainder = stickbreaking_attention(
                query, key, value, implementation=self.implementation, **options
            )
            return output[:, at].sum() + jnp.cos(remainder[:, at]).sum()

        differentiate = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        gradients = differentiate(*arrays)
        d_query, d_key, d_value = (np.asarray(g) for g in gradients)
        keys = unseen(at, POSITIONS)
        assert keys.any()
        for name, gradient in (("d_key", d_key), ("d_value", d_value)):
            assert (gradient[:, keys] == 0).all(), name
            assert (gradient[:, ~keys] != 0).any(), name
        assert (np.delete(d_query, at, axis=1) == 0).all()
        assert (d_query[:, at] != 0).any()

    @pytest.mark.parametrize("size", [30.0, 100.0, 1e4, 1e30])
    def test_extreme_logits(self, size: float) -> None:
        random = np.random.default_rng(6)
        length = 100
        # Width 1, so that logits are what they are meant to be: size, 0 or -size.
        query = np.sign(random.integers(-1, 2, (1, length, 2, 1))).astype(np.float64)
        key = random.choice([-size, 0.0, 0.0, size], (1, length, 2, 1), p=[0.6, 0.15, 0.15, 0.1])
        value, d_output = (random.standard_normal((1, length, 2, 3)) for _ in "vo")
        d_remainder = random.standard_normal((1, length, 2))
        arrays = [self.rounded(x) for x in (query, key, value, d_output, d_remainder)]
        options = {"attend_current": True, "scale": 1.0}
        actual = self.run(arrays, options, optimised=True)
        assert all(np.isfinite(array).all() for array in actual)
        for label, mine, expected in zip(
            NAMES, actual, exact_attention.stickbreaking(arrays, options), strict=True
        ):
            if label == "d_query" and size > 0.1 / self.tolerance():
                continue  # A rounding error times such a key is no small number.
            assert_close(mine, expected, self.tolerance(), label)

    @sweep("logit", [9.0, 20.3, 60.0], [20.3])
    def test_logits_that_take_the_whole_stick_have_no_gradient(self, logit: float) -> None:
        assert_saturated(self.run, logit)

    def test_deterministic(self) -> None:
        arrays, options = self.case("segments_and_padding").make()
        first, second = (self.run(arrays, options) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)

    @sweep(
        ("chunk", "window"),
        itertools.product([1, 24], [None, 33]),
        [(1, 33), (24, None)],
    )
    def test_cached_equals_whole_sequence(self, chunk: int, window: int | None) -> None:
        length, cache_length = 96, 160
        random = np.random.default_rng(7)
        shapes = ((2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8))
        query, key, value = (random.standard_normal(s).astype(np.float32) for s in shapes)
        whole = self.attend(query, key, value, attend_current=True, window=window)

        @jax.jit
        def step(query, key, value, offset):
            return stickbreaking_attention(
                query,
                key,
                value,
                attend_current=True,
                window=window,
                query_offset=offset,
                implementation=self.implementation,
            )

        # What lies in the cache beyond the last key must not matter.
        cached_key, cached_value = (np.full((2, cache_length, 2, 8), 9.0, "float32") for _ in "kv")
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            cached_key[:, part], cached_value[:, part] = key[:, part], value[:, part]
            own = (jnp.asarray(x, self.dtype) for x in (query[:, part], cached_key, cached_value))
            output, remainder = step(*own, np.int32(start))
            self.assert_same(output, whole.output[:, part])
            self.assert_same(remainder, whole.remainder[:, part])

    @sweep(
        ("name", "tolerance"),
        EARLY_EXIT_CASES,
        [("segments_and_padding", 0.02)],
    )
    def test_early_exit_keeps_its_bounds(self, name: str, tolerance: float) -> None:
        case = self.case(name)
        arrays, options = case.make()
        exact = oracle(case)
        actual = run(self.implementation, arrays, options | {"tolerance": tolerance}, case.dtype)
        rounding = self.tolerance(case.dtype)
        bounds = early_exit_bounds(arrays, options, tolerance)
        for label, mine, expected, bound in zip(NAMES, actual, exact, bounds, strict=True):
            error = np.abs(mine - expected)
            assert np.isfinite(error).all(), label
            # Rounding is relative to what is summed, which norms stand for.
            slack = rounding * (np.abs(expected).max() + np.linalg.norm(expected) / 10)
            assert (error <= bound + slack).all(), (label, (error - bound).max())
        remainder, exact_remainder = actual[1], exact[1]
        # What is passed over takes nothing, and nothing is passed over before the tolerance.
        assert (remainder >= exact_remainder * (1 - rounding) - 1e-7).all()
        passed_over = remainder > exact_remainder * (1 + rounding) + 1e-7
        assert (remainder[passed_over] < tolerance * (1 + rounding)).all()

    @sweep("attend_current", [False, True], [True])
    def test_early_exit_passes_far_keys_over(self, attend_current: bool) -> None:
        # Each key takes a twentieth of the stick: far keys have small weights, yet none is 0, and a
        # tolerance of 2**-12 is reached after some 160 keys.
        length, queries, far = 900, 70, 300
        random = np.random.default_rng(8)
        query, key = (np.full((1, n, 2, 8), x) for n, x in ((queries, 1.0), (length, -1.0)))
        value = random.standard_normal((1, length, 2, 8))
        d_output = random.standard_normal((1, queries, 2, 8))
        arrays = query, key, value, d_output, random.standard_normal((1, queries, 2))
        options = {"scale": 3 / 8, "attend_current": attend_current}
        exact = self.run(arrays, options)
        early = self.run(arrays, options | {"tolerance": 2**-12})
        for label, of_all, of_near in zip(NAMES[3:], exact[3:], early[3:], strict=True):
            assert (of_all[:, :far] != 0).any(axis=-1).all(), label
            assert (of_near[:, :far] == 0).all(), label
            assert (of_near[:, -queries:] != 0).any(axis=-1).sum() >= 2 * (queries - 1), label
        for label, mine, expected in zip(NAMES, early, exact, strict=True):
            if label != "remainder":
                assert_close(mine, expected, 1e-2, label)
        assert (early[1] > exact[1]).all()
        assert (early[1] < 2**-12).all()

    def test_early_exit_changes_nothing_that_it_does_not_reach(self) -> None:
        arrays, options = self.case("segments_and_padding").make()
        plain = self.run(arrays, options)
        least = self.run(arrays, options | {"tolerance": 1e-30})
        for label, one, other in zip(NAMES, plain, least, strict=True):
            assert_close(one, other, 1e-6, label)

    def test_gradients_are_those_of_what_early_exit_computes(self) -> None:
        """The sum of the weights plus the remainder is 1, passed over or not: no gradient."""
        random = np.random.default_rng(9)
        query, key = (random.standard_normal((1, 300, 2, 8)) for _ in "qk")
        ones = np.ones((1, 300, 2, 8))
        arrays = [self.rounded(x) for x in (query, key, ones, ones, 8 * ones[..., 0])]
        results = self.run(arrays, {"tolerance": 0.05})
        output, remainder, d_query, d_key, d_value = results
        rounding = self.tolerance()
        np.testing.assert_allclose(output[..., 0] + remainder, 1, rtol=rounding)
        # What the two cancel is of size 8.
        assert np.abs(d_query).max() < 10 * rounding
        assert np.abs(d_key).max() < 10 * rounding
        taken = (1 - remainder).sum(1)
        np.testing.assert_allclose(d_value[..., 0].sum(1), taken, rtol=10 * rounding)
