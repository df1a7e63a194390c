"""Case of a call of attention: the properties that decide which implementations can run it."""

from __future__ import annotations

import dataclasses

import jax

from pallas_kernels.attention.shared.masks import Visibility


@dataclasses.dataclass(frozen=True)
class Case:
    """One call, as far as it is known statically.

    Attributes:
      query: `[B, Sq, H, d]`, as anything that has a shape and a dtype.
      key: `[B, Sk, G, d]`.
      value: `[B, Sk, G, dv]`.
      window: see the public operations.
      segments: whether segment ids are given.
      padding: whether a key mask is given.
      tolerance: of the early exit of stick-breaking attention.
      causal: whether keys in the future of a query are not seen.
      offset: the key index at which query 0 stands; None if it is traced.
      log_sum: whether softmax attention returns its log-sum-exp too.
    """

    query: jax.ShapeDtypeStruct | jax.Array
    key: jax.ShapeDtypeStruct | jax.Array
    value: jax.ShapeDtypeStruct | jax.Array
    window: int | None = None
    segments: bool = False
    padding: bool = False
    tolerance: float = 0.0
    causal: bool = True
    offset: int | None = 0
    log_sum: bool = False

    @classmethod
    def of(
        cls,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        visibility: Visibility,
        tolerance: float = 0.0,
    ) -> Case:
        """The case of a call under these rules."""
        offset = visibility.offset
        return cls(
            query,
            key,
            value,
            visibility.window,
            segments=visibility.key_segment_ids is not None,
            padding=visibility.key_mask is not None,
            tolerance=tolerance,
            causal=visibility.nearest is not None,
            offset=None if isinstance(offset, jax.Array) else int(offset),
        )
