"""Sizes of 0, positions beyond int32 and what is refused, alike in both kinds of attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import softmax_attention as softmax
from pallas_kernels import stickbreaking_attention as stickbreaking
from pallas_kernels.attention.shared.arguments import checked_visibility
from pallas_kernels.attention.shared.masks import Visibility

SIZES = {"batch": 2, "queries": 3, "keys": 5, "heads": 4, "groups": 2, "width": 8, "values": 8}
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...], float | None]] = {
    "stickbreaking": (stickbreaking.stickbreaking_attention, stickbreaking.IMPLEMENTATIONS, 1.0),
    "softmax": (softmax.softmax_attention, softmax.IMPLEMENTATIONS, None),
    "log sum": (softmax.softmax_attention_and_log_sum, ("xla", "reference"), -np.inf),
}
CASES = [
    (operation, implementation)
    for operation, (_, implementations, _) in OPERATIONS.items()
    for implementation in implementations
]


def _arrays(dtype: Any = jnp.float32, **changes: int) -> list[jax.Array]:
    """Query, key and value."""
    sizes = SIZES | changes
    shapes = (
        ("batch", "queries", "heads", "width"),
        ("batch", "keys", "groups", "width"),
        ("batch", "keys", "groups", "values"),
    )
    random = np.random.default_rng(0)
    return [
        jnp.asarray(random.standard_normal([sizes[axis] for axis in shape]), dtype)
        for shape in shapes
    ]


@pytest.mark.parametrize(("operation", "implementation"), CASES)
@pytest.mark.parametrize(
    "empty",
    [{"batch": 0}, {"queries": 0}, {"keys": 0}, {"heads": 0}, {"heads": 0, "groups": 0}],
    ids=lambda sizes: " ".join(sizes),
)
def test_nothing_gives_nothing(operation: str, implementation: str, empty: dict[str, int]) -> None:
    attend, _, of_rest = OPERATIONS[operation]
    arrays = _arrays(jnp.bfloat16, **empty)
    masks: dict[str, Any] = {"query_offset": 0}
    if implementation != "cudnn":
        ids = [jnp.zeros(x.shape[:2], jnp.int32) for x in arrays[:2]]
        masks |= {"query_segment_ids": ids[0], "key_segment_ids": ids[1]}
        masks |= {"key_mask": jnp.ones(ids[1].shape, bool), "window": 3}

    def call(*arrays):
        return attend(*arrays, implementation=implementation, **masks)

    results, pull = jax.vjp(call, *arrays)
    output, *rest = results if isinstance(results, tuple) else (results,)
    assert output.shape == (*arrays[0].shape[:3], SIZES["values"])
    assert output.dtype == jnp.bfloat16
    assert (output == 0).all()
    for x in rest:
        assert x.shape == arrays[0].shape[:3]
        assert x.dtype == jnp.float32
        assert (x == of_rest).all()
    for gradient, array in zip(pull(results), arrays, strict=True):
        assert gradient.shape == array.shape
        assert gradient.dtype == array.dtype
        assert (gradient == 0).all()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_vectors_without_numbers(operation: str, implementation: str) -> None:
    attend = functools.partial(OPERATIONS[operation][0], implementation=implementation)
    query, key, value = _arrays()
    # All logits are 0.
    expected = attend(jnp.zeros_like(query), key, value)
    found, pull = jax.vjp(attend, query[..., :0], key[..., :0], value)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    d_query, d_key, d_value = pull(found)
    assert (d_query.shape, d_key.shape) == (query[..., :0].shape, key[..., :0].shape)
    assert (d_value != 0).any()
    # What depends on no values is still there.
    found, expected = (jax.tree.leaves(attend(query, key, x)) for x in (value[..., :0], value))
    assert found[0].shape == (*query.shape[:3], 0)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


QUERIES, KEYS = 3, 5
NEAREST = [None, 0, 1]
EDGES = [-(2**31), -(2**31) + 1, -8, -3, -1, 0, 2, 5, 6, 7, 12, 2**31 - 7, 2**31 - 1]


def _seen(offset: int, window: int | None, nearest: int | None) -> np.ndarray:
    """By Python's integers, of any size."""
    distance = [[i + offset - j for i in range(QUERIES)] for j in range(KEYS)]
    return np.array(
        [
            [(nearest is None or d >= nearest) and (window is None or d < window) for d in of_key]
            for of_key in distance
        ]
    )


def _visibility(offset: Any, window: Any, nearest: int | None) -> Visibility:
    query, key, value = _arrays(queries=QUERIES, keys=KEYS)
    return checked_visibility(
        query,
        key,
        value,
        query_segment_ids=None,
        key_segment_ids=None,
        key_mask=None,
        query_offset=offset,
        window=window,
        nearest=nearest,
    )


@pytest.mark.parametrize("nearest", NEAREST)
def test_offsets_and_windows_of_any_size(nearest: int | None) -> None:
    windows = [None, 1, 4, 8, 2**31 - 9, 2**31 - 1, 2**31, 2**40]
    for offset in [*EDGES, 2**31, 2**31 + 3, -(2**40), 2**40]:
        for window in windows:
            rules = _visibility(offset, window, nearest)
            assert abs(int(rules.offset)) + (rules.window or 0) < 100
            np.testing.assert_array_equal(
                np.asarray(rules.seen(0, QUERIES, 0, KEYS))[0],
                _seen(offset, window, nearest),
                f"{offset=} {window=}",
            )


def _rules_of(dtype: Any, window: int | None, nearest: int | None) -> Any:
    @jax.jit
    def rules(offset):
        rules = _visibility(offset, window, nearest)
        return rules.seen(0, QUERIES, 0, KEYS)[0]

    return lambda offset: np.asarray(rules(np.asarray(offset, dtype)))


@pytest.mark.parametrize(
    ("dtype", "offsets"),
    [
        (np.int32, EDGES),
        (np.uint32, [0, 3, 2**31 - 1, 2**31, 2**32 - 1]),
        (np.int8, [-128, -3, 0, 5, 127]),
        (np.uint8, [0, 5, 255]),
    ],
)
def test_offsets_that_are_traced(dtype: Any, offsets: list[int]) -> None:
    for nearest, window in ((1, None), (0, 4), (0, 2**31 - 40), (1, 2**31)):
        rules = _rules_of(dtype, window, nearest)
        for offset in offsets:
            reaches = None if window == 2**31 else window
            np.testing.assert_array_equal(
                rules(offset), _seen(offset, reaches, nearest), f"{offset=} {window=}"
            )


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 1.5}, "window must be an integer of Python's, got 1.5"),
        ({"window": True}, "window must be an integer of Python's, got True"),
        ({"window": -(2**40)}, "window must be at least 1, got -1099511627776"),
        ({"query_offset": 2.0**31}, "query_offset must be an integer scalar, got 2147483648.0"),
        ({"query_offset": True}, "query_offset must be an integer scalar, got True"),
        ({"scale": float("nan")}, "scale must be finite, got nan"),
        ({"scale": float("inf")}, "scale must be finite, got inf"),
    ],
)
def test_what_makes_no_sense_is_refused(operation: str, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OPERATIONS[operation][0](*_arrays(), **changes)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float4_e2m1fn, jnp.int32, jnp.complex64]
)
def test_other_types_are_refused_by_name(operation: str, dtype: Any) -> None:
    attend, implementations, _ = OPERATIONS[operation]
    for implementation in (None, *implementations):
        with pytest.raises(ValueError, match=r"must be of float16.* or float64, got query \w+"):
            attend(*_arrays(dtype), implementation=implementation)


def test_a_traced_scale_says_what_to_do() -> None:
    arrays = _arrays()
    with pytest.raises(ValueError, match="scale must be a number of Python's: multiply query"):
        jax.jit(lambda scale: stickbreaking.stickbreaking_attention(*arrays, scale=scale))(1.0)
    traced = functools.partial(softmax.softmax_attention, *arrays)
    with pytest.raises(ValueError, match="window must be an integer of Python's"):
        jax.jit(lambda window: traced(window=window))(3)
