"""Every kind in a whole model: cached, packed, padded, otherwise segmented, in bfloat16."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np
import pytest

from modbrick.bricks import Brick, BrickConfig, Modality, initial_bricks, plugged
from modbrick.bricks.plugging import Plugged
from modbrick.config import ModelConfig, SegmentConfig
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.layers.cache import Cache
from tests.modbrick.bricks import tiny

MARK = 7
pytestmark = pytest.mark.usefixtures("quick_compilation")
BRICKS = tiny.FEW_SITES | {"eye": BrickConfig(("features",), Modality(MARK, 4, hidden=4))}
# Each brick alone, all of them, none; and few rows of a few each, which compile much faster.
ALONE = (*BRICKS, "+".join(BRICKS), None)
MIXED = ("de+tone+gain", "law+norms+style", "each+drift+eye", "back+fore+ask", "beg", None)
MOST = len(ALONE)
TOKENS = np.random.default_rng(0).integers(1, tiny.MODEL.vocabulary, (MOST, 8))
TOKENS[:, 2] = TOKENS[:, 6] = MARK
FEATURES = np.random.default_rng(1).normal(size=(MOST, 2, 4)).astype(np.float32)
Sets = tuple[str | None, ...]
each_sets = pytest.mark.parametrize(
    "sets", [MIXED, pytest.param(ALONE, marks=pytest.mark.verify)], ids=["mixed", "alone"]
)


@functools.cache
def weights() -> tuple[dict[str, Any], dict[str, Any]]:
    return initial_parameters(tiny.MODEL, jax.random.key(0)), tiny.random_bricks(BRICKS)


def plug_of(model: ModelConfig = tiny.MODEL) -> Plugged:
    return plugged(model, BRICKS, weights()[1])


@functools.partial(jax.jit, static_argnames="model")
def run(model: ModelConfig, parameters: Any, tokens: Any, ids: Any, **more: Any) -> Any:
    out = functional_decoder(model).bind(parameters)(tokens, brick_ids=ids, **more)
    return out.logits, out.cache


def run_rows(model: ModelConfig, plug: Plugged, tokens: Any, sets: Sets, **more: Any) -> Any:
    """Logits and cache of the first rows, each with its set; `features` of all rows."""
    features = {"features": more.pop("features", FEATURES)[: len(sets)]}
    ids = plug.ids(list(sets))
    parameters = more.pop("parameters", weights()[0])
    rows = tokens[: len(sets)]
    return run(model, parameters, rows, ids, bricks=plug, brick_features=features, **more)


@functools.cache
def whole(sets: Sets = ALONE) -> np.ndarray:
    """Logits of rows at once."""
    return np.asarray(run_rows(tiny.MODEL, plug_of(), TOKENS, sets)[0])


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.verify
def test_every_brick_changes_its_row() -> None:
    base, _ = run(tiny.MODEL, weights()[0], TOKENS, None)
    for row, name in enumerate(ALONE[:-1]):
        assert np.abs(whole()[row] - base[row]).max() > 1e-3, name
    close(whole()[-1], base[-1])  # whose feed-forward experts run as one operation


@each_sets
def test_a_cache_continues_a_row_with_its_bricks(sets: Sets) -> None:
    plug, cache = plug_of(), Cache.empty(tiny.MODEL, len(sets), 8)
    parts = []
    for half in (0, 1):
        tokens, features = TOKENS[:, 4 * half : 4 * half + 4], FEATURES[:, half : half + 1]
        logits, cache = run_rows(tiny.MODEL, plug, tokens, sets, cache=cache, features=features)
        parts.append(logits)
    close(np.concatenate(parts, 1), whole(sets))


@each_sets
def test_documents_of_a_row_do_not_see_each_other(sets: Sets) -> None:
    tokens = np.concatenate([TOKENS[:, :5], TOKENS[:, :4]], 1)
    documents = np.broadcast_to([1] * 5 + [2] * 4, (len(sets), 9))
    features = np.repeat(FEATURES[:, :1], 2, 1)
    logits, _ = run_rows(
        tiny.MODEL, plug_of(), tokens, sets, segment_ids=documents, features=features
    )
    close(logits[:, :5], whole(sets)[:, :5])
    close(logits[:, 5:], whole(sets)[:, :4])


@pytest.mark.verify
def test_padding_in_front_makes_no_difference() -> None:
    padded = np.concatenate([np.full((MOST, 3), MARK), TOKENS], 1)
    mask = np.broadcast_to(np.arange(11) >= 3, padded.shape)
    logits, _ = run_rows(tiny.MODEL, plug_of(), padded, ALONE, attention_mask=mask)
    close(logits[:, 3:], whole())


@pytest.mark.verify
def test_segments_make_no_difference() -> None:
    (segment,) = tiny.MODEL.segments
    attention = dataclasses.replace(segment.layer.attention, window=1000)  # sees as far as all
    other = dataclasses.replace(segment.layer, attention=attention)
    rest = SegmentConfig(other, segment.repeats - 1)
    split = tiny.MODEL.replace(segments=(SegmentConfig(segment.layer, 1), rest))
    parameters = {}
    for path, value in weights()[0].items():
        if path.startswith("segments.0."):
            parameters[path] = value[:1]
            parameters[path.replace("segments.0.", "segments.1.")] = value[1:]
        else:
            parameters[path] = value
    values: dict[str, Any] = {}
    for name, config in BRICKS.items():
        brick = Brick.of_parameters(name, config, tiny.MODEL, weights()[1])
        values |= brick.parameters(name, split)
    plug = plugged(split, BRICKS, values)
    logits, _ = run_rows(split, plug, TOKENS, ALONE, parameters=parameters)
    close(logits, whole())


@pytest.mark.verify
def test_in_bfloat16_bricks_are_close_and_none_is_the_base() -> None:
    model = dataclasses.replace(tiny.MODEL, dtype="bfloat16")
    logits, _ = run_rows(model, plug_of(model), TOKENS, ALONE)
    error = np.sqrt(np.square(logits - whole()).mean((1, 2)) / np.square(whole()).mean((1, 2)))
    assert error.max() < 0.06, dict(zip(map(str, ALONE), error, strict=True))


@pytest.mark.verify
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_ones_change_nothing(dtype: Literal["float32", "bfloat16"]) -> None:
    """To the bit; but inside banks of feed-forward experts, which run product by product then.

    A prompt changes something from the beginning.
    """
    model = dataclasses.replace(tiny.MODEL, dtype=dtype)
    quiet = {name: c for name, c in BRICKS.items() if c.settings.hook != "prompt"}
    at = {name: tuple(s for s in c.at if "feed_forward." not in s) for name, c in quiet.items()}
    bricks = {name: BrickConfig(at[name], c.settings) for name, c in quiet.items() if at[name]}
    plug = plugged(model, bricks, initial_bricks(model, bricks, jax.random.key(0)))
    sets = (*bricks, None)
    new, _ = run_rows(model, plug, TOKENS, sets)
    base, _ = run(model, weights()[0], TOKENS[: len(sets)], None)
    np.testing.assert_allclose(new, base, rtol=1e-6 if dtype == "float32" else 2e-2, atol=1e-6)
