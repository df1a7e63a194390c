"""Features in rows: where they go, what is made of them, and whose bricks make it."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import (
    BrickConfig,
    Knowledge,
    LoRA,
    Modality,
    Settings,
    initial_bricks,
    plugged,
)
from modbrick.config.families import dense
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError

MODEL = dense(vocabulary=31, width=16, layers=1, heads=2, feed_forward_width=16, dtype="float32")
MARK, WIDTH = 7, 5
KINDS: dict[str, tuple[Settings, Settings]] = {
    "mlp": (Modality(MARK, WIDTH, hidden=6, scale=0.5), Modality(MARK, WIDTH, hidden=3)),
    "linear": (Knowledge(MARK, WIDTH, "features"), Knowledge(MARK, WIDTH, "features")),
    "queries": (
        Modality(MARK, WIDTH, hidden=None, queries=2),
        Modality(MARK, WIDTH, hidden=None, queries=3),
    ),
    "queries and mlp": (
        Modality(MARK, WIDTH, hidden=4, queries=2),
        Modality(MARK, WIDTH, hidden=4, queries=1, scale=2.0),
    ),
}
TOKENS = np.array([[1, MARK, 2, MARK, MARK, 3], [MARK, 4, 5, 6, 8, 9]])
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.normal(size=(2, 2, WIDTH)).astype(np.float32)


@functools.cache
def base() -> Any:
    return functional_decoder(MODEL), initial_parameters(MODEL, jax.random.key(0))


@jax.jit
def embedded(parameters: Any, plug: Any, tokens: Any, features: Any, ids: Any = None) -> Any:
    """What the layers get; they themselves are not compiled."""
    out = base()[0].bind(parameters)(
        tokens, bricks=plug, brick_features=features, brick_ids=ids, capture=("features",)
    )
    return out.captured["features"]


def plug_of(name: str, *, new: bool = False) -> tuple[Any, dict[str, np.ndarray]]:
    bricks = {n: BrickConfig(("features",), k) for n, k in zip("ab", KINDS[name], strict=True)}
    values = {p: np.asarray(x) for p, x in initial_bricks(MODEL, bricks, jax.random.key(1)).items()}
    if not new:
        values = {
            path: (x + RANDOM.normal(0.0, 0.5, x.shape)).astype(np.float32)
            for path, x in values.items()
        }
    return plugged(MODEL, bricks, {p: jnp.asarray(x) for p, x in values.items()}), values


def expected(name: str, number: int, values: dict[str, np.ndarray]) -> np.ndarray:
    """What one brick adds to the embeddings, in float64, row by row."""
    kind = KINDS[name][number]
    leaves = {
        path.split(".")[-1]: value.astype(np.float64)
        for path, value in values.items()
        if path.startswith(f"bricks.{'ab'[number]}.")
    }
    change = np.zeros((*TOKENS.shape, MODEL.width))
    for row, features in enumerate(FEATURES.astype(np.float64)):
        if "queries" in leaves:
            weights = np.exp(leaves["queries"] @ features.T / WIDTH**0.5)
            features = weights / weights.sum(-1, keepdims=True) @ features
        if "down" in leaves:
            z = features @ leaves["down"] + leaves["down_bias"]
            features = 0.5 * z * (1 + np.vectorize(math.erf)(z / 2**0.5))
        mapped = (features @ leaves["up"] + leaves["up_bias"]) * getattr(kind, "scale", 1.0)
        places = np.flatnonzero(TOKENS[row] == MARK)[: len(mapped)]
        change[row, places] = mapped[: len(places)]
    return change


@pytest.mark.parametrize("name", KINDS)
def test_features_go_where_the_placeholders_are(name: str) -> None:
    plug, values = plug_of(name)
    before = embedded(base()[1], plug, TOKENS, None)
    changes = [expected(name, number, values) for number in range(2)]
    # Each row has a set of its own; then each token.
    for sets in (["a", "b"], ["a+b", None], ["b", "b+a"]):
        after = embedded(base()[1], plug, TOKENS, {"features": FEATURES}, plug.ids(sets, 2))
        for row, members in enumerate(sets):
            want = sum((changes["ab".index(m)][row] for m in (members or "").split("+") if m), 0.0)
            np.testing.assert_allclose(after[row] - before[row], want, rtol=1e-5, atol=2e-5)
            unmarked = TOKENS[row] != MARK
            assert np.array_equal(after[row][unmarked], before[row][unmarked])
    everything = embedded(base()[1], plug, TOKENS, {"features": FEATURES})
    np.testing.assert_allclose(everything - before, sum(changes), rtol=1e-5, atol=2e-5)
    by_token = np.where(np.arange(6) < 3, 0, 1)[None].repeat(2, 0)[..., None]
    mixed = embedded(base()[1], plug, TOKENS, {"features": FEATURES}, by_token)
    want = np.where(by_token == 0, changes[0], changes[1])
    np.testing.assert_allclose(mixed - before, want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_new_ones_and_calls_without_features_change_no_bit(name: str) -> None:
    (plug, _), (new, _) = plug_of(name), plug_of(name, new=True)
    plain = np.asarray(embedded(base()[1], None, TOKENS, None))
    given = {"features": FEATURES}
    assert np.array_equal(embedded(base()[1], plug, TOKENS, None), plain)
    assert np.array_equal(embedded(base()[1], new, TOKENS, given), plain)
    nobody = new.ids([None, None], 2)
    assert np.array_equal(embedded(base()[1], plug, TOKENS, given, nobody), plain)


@pytest.mark.parametrize("name", KINDS)
def test_features_of_zeros_are_padding(name: str) -> None:
    plug, _ = plug_of(name)
    one = {"features": FEATURES[:, :1]}
    padded = {"features": np.pad(FEATURES[:, :1], [(0, 0), (0, 2), (0, 0)])}
    for ids in (None, plug.ids(["a", "b"])):
        alone = embedded(base()[1], plug, TOKENS, one, ids)
        among = embedded(base()[1], plug, TOKENS, padded, ids)
        np.testing.assert_allclose(alone, among, rtol=1e-6, atol=1e-6)
        assert np.abs(alone - embedded(base()[1], plug, TOKENS, None, ids)).max() > 1e-2


def test_padding_in_front_is_no_placeholder() -> None:
    plug, _ = plug_of("mlp")
    model = base()[0].bind(base()[1])
    padded = np.concatenate([np.full((2, 2), MARK), TOKENS], 1)
    mask = np.arange(8) >= 2
    given = {"features": jnp.asarray(FEATURES)}
    out = model(
        jnp.asarray(padded),
        attention_mask=jnp.asarray(mask[None].repeat(2, 0)),
        bricks=plug,
        brick_features=given,
    )
    whole = model(jnp.asarray(TOKENS), bricks=plug, brick_features=given)
    np.testing.assert_allclose(out.logits[:, 2:], whole.logits, rtol=1e-5, atol=1e-5)


def test_the_gradient_reaches_the_brick_through_its_features() -> None:
    plug, _ = plug_of("mlp", new=True)

    def loss(plug: Any) -> jax.Array:
        out = base()[0].bind(base()[1])(TOKENS, bricks=plug, brick_features={"features": FEATURES})
        return out.logits[:, -1, 3].sum()

    gradient = jax.jit(jax.grad(loss, allow_int=True))(plug).decoder["features"][0].leaves
    assert np.asarray(gradient["up"]).any()
    assert not np.asarray(gradient["down"]).any(), "up is zero at first"


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        ({"feature": FEATURES}, "no brick takes brick_features 'feature'; did you mean 'features'"),
        ({"features": FEATURES[:, 0]}, r"of shape \[2, 5\] do not fit 2 rows"),
        ({"features": FEATURES[:1]}, r"of shape \[1, 2, 5\] do not fit 2 rows"),
        ({"features": FEATURES[..., :4]}, "are of width 4, their brick is for 5"),
    ],
)
def test_features_that_do_not_fit_are_refused(features: Any, complaint: str) -> None:
    plug, _ = plug_of("linear")
    with pytest.raises(InputError, match=complaint):
        base()[0].bind(base()[1])(jnp.asarray(TOKENS), bricks=plug, brick_features=features)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (BrickConfig(("features",), Modality(31, 4)), "placeholder 31 is no token"),
        (BrickConfig(("features",), LoRA()), "lora cannot be attached at 'features'"),
        (BrickConfig(("embedding",), Knowledge(1, 4)), "knowledge cannot be attached"),
    ],
)
def test_places_that_do_not_fit_are_refused(config: BrickConfig, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        initial_bricks(MODEL, {"new": config}, jax.random.key(0))


@pytest.mark.parametrize(
    "settings", [{"placeholder": -1}, {"width": 0}, {"hidden": 0}, {"queries": -1}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} of a modality must be"):
        Modality(**{"placeholder": 1, "width": 4} | settings)
