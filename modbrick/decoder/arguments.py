"""Arguments of a call of the decoder: checked, counted and spread over its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from modbrick.errors import InputError
from modbrick.layers.cache import Cache
from modbrick.layers.context import Bricks, Visibility
from modbrick.parallel.choice import Choice
from modbrick.schema import nearest

BrickIds = Int[Array, "B"] | Int[Array, "B S"] | Int[Array, "B S K"]
"""Bricks that each example, each token uses, or which several; -1 none."""
BrickWeights = Float[Array, "B"] | Float[Array, "B S"] | Float[Array, "B S K"]

BrickFeatures = Mapping[str, Float[Array, "B P W"]]
"""Features that bricks put into rows, by name."""


def check_values(tokens: Int[Array, "B S"], vocabulary: int, cache: Cache | None) -> None:
    """Refuses ids and lengths out of range, where they are known; lookups would clamp them."""
    if not isinstance(tokens, jax.core.Tracer) and tokens.size:
        # By numpy: a constant inside a traced function must stay one.
        least, largest = np.asarray(tokens).min(), np.asarray(tokens).max()
        if least < 0 or largest >= vocabulary:
            raise InputError(
                f"token ids from {least} to {largest} do not fit a vocabulary of {vocabulary}"
            )
    if cache is not None and not isinstance(cache.length, jax.core.Tracer):
        needed = int(np.asarray(cache.length)) + tokens.shape[1]
        if needed > cache.capacity:
            raise InputError(f"{needed} tokens do not fit a cache of {cache.capacity}")


def count_positions(
    tokens: Int[Array, "B S"], mask: Bool[Array, "B S"] | None, cache: Cache | None
) -> Int[Array, "B S"]:
    """Counts real tokens from 0, on from those in the cache."""
    if mask is None:
        counts = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    else:
        counts = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    if cache is not None:
        counts = counts + cache.mask.sum(1, keepdims=True)
    return counts.astype(jnp.int32)


def visible(
    tokens: Int[Array, "B S"],
    attention_mask: Bool[Array, "B S"] | None,
    segment_ids: Int[Array, "B S"] | None,
    positions: Int[Array, "B S"] | None,
    cache: Cache | None,
) -> tuple[Visibility, Bool[Array, "B S"] | None, Int[Array, "B S"], Cache | None]:
    """Returns what tokens see, which are real, where they stand, and the cache with masks.

    Raises:
      ValueError: shapes that disagree.
    """
    for name, value in (
        ("attention_mask", attention_mask),
        ("segment_ids", segment_ids),
        ("positions", positions),
    ):
        if value is not None and value.shape != tokens.shape:
            raise ValueError(f"{name} has shape {value.shape}, tokens {tokens.shape}")
    mask = None if attention_mask is None else attention_mask.astype(bool)
    if segment_ids is not None:
        mask = segment_ids != 0 if mask is None else mask & (segment_ids != 0)
    if positions is None:
        positions = count_positions(tokens, mask, cache)
    if cache is None:
        return Visibility(0, mask, segment_ids, segment_ids), mask, positions, None
    real = jnp.ones(tokens.shape, bool) if mask is None else mask
    key_mask, documents = cache.append(real, segment_ids)
    visibility = Visibility(
        cache.length, key_mask, segment_ids, None if segment_ids is None else documents
    )
    cache = dataclasses.replace(cache, mask=key_mask, segment_ids=documents)
    return visibility, mask, positions, cache


def check_ids(ids: BrickIds | None, bricks: Bricks) -> None:
    """Refuses ids of bricks that are not there, where they are known; they would choose none."""
    if ids is None or isinstance(ids, jax.core.Tracer) or not np.size(ids):
        return
    sites = [*bricks.decoder.values(), *(b for s in bricks.segments.values() for b in s.values())]
    counts = [bank.rows.shape[-1] for banks in sites for bank in banks if hasattr(bank, "rows")]
    least, largest, count = np.min(ids), np.max(ids), max(counts, default=0)
    if sites and not counts:
        return  # bricks of somebody's own, with ids of their own
    if least < -1 or largest >= count:
        raise InputError(f"brick ids from {least} to {largest} do not fit {count} bricks")


def checked_features(
    features: BrickFeatures | None, bricks: Bricks, tokens: Array
) -> dict[str, Array]:
    """Returns features as arrays, by name.

    Raises:
      InputError: no brick takes features of a name, or their shape does not fit the tokens.
    """
    banks: Iterable[Any] = bricks.decoder.get("features", ())
    known = {bank.form.features for bank in banks}
    for name, values in (features or {}).items():
        if name not in known:
            raise InputError(f"no brick takes brick_features {name!r}; {nearest(name, known)}")
        if np.ndim(values) != 3 or len(values) != len(tokens):
            shape = list(np.shape(values))
            raise InputError(
                f"brick_features {name!r} of shape {shape} do not fit {len(tokens)} rows: [B, P, W]"
            )
    return {name: jnp.asarray(values) for name, values in (features or {}).items()}


def spread(ids: BrickIds | None, weights: BrickWeights | None, tokens: Array) -> Choice | None:
    """Spreads ids and weights given per example over its tokens `[B, S, ...]`.

    Raises:
      InputError: shapes that do not fit the tokens or each other, ids that are no integers, or
        weights without ids.
    """
    if ids is None:
        if weights is not None:
            raise InputError("brick_weights stand beside brick_ids: give both")
        return None
    alike = _alike(ids) and (weights is None or _alike(weights))
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"brick_ids are integers, got {ids.dtype}")
    ids = _over_tokens("brick_ids", ids, tokens)
    if weights is None:
        return Choice(ids, alike=alike)
    weights = _over_tokens("brick_weights", jnp.asarray(weights), tokens)
    if weights.shape != ids.shape:
        raise InputError(
            f"brick_weights for {weights.shape[-1]} bricks a token do not fit brick_ids for "
            f"{ids.shape[-1]}"
        )
    return Choice(ids, weights, alike)


def _alike(values: Array) -> bool:
    """Returns whether values are known to be the same for all tokens."""
    if isinstance(values, jax.core.Tracer):
        return False
    known = np.asarray(values)
    by_token = known.reshape(-1, *known.shape[2:])
    return bool((by_token == by_token[:1]).all())


def _over_tokens(name: str, values: Array, tokens: Array) -> Array:
    """Returns `[B]`, `[B, S]` or `[B, S, K]` as `[B, S, K]`; an axis S of 1 is repeated."""
    batch, length = tokens.shape[:2]
    shape = (*values.shape, *(1,) * (3 - values.ndim))
    if values.ndim > 3 or shape[0] != batch or shape[1] not in (1, length):
        raise InputError(f"{name} of shape {values.shape} do not fit tokens {(batch, length)}")
    return jnp.broadcast_to(values.reshape(shape), (batch, length, shape[2]))
