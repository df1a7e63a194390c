"""Results of a decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from modbrick.layers.cache import Cache
from modbrick.layers.router import RouterStatistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """Result of the layers, before the head.

    Attributes:
      hidden: after the final norm.
      router_statistics: totals of each router, `segments.N.attention` and
        `segments.N.feed_forward`, stacked over the segment's layers.
      cache: updated, if one was given.
      captured: what `capture` named: `hidden_states` `[L+1, B, S, D]` (the embedding, then the
        stream after each layer); `attention_weights`, one `[L, B, N, S, C]` by segment (with
        experts, N runs over key heads, then slots, then heads in a group; without what stands in
        front of documents); `routing`, one stacked `Routing` by router; a site by its name, its
        outputs stacked `[L, B, S, ...]` by segment
        (`embedding` and `head` as they are); `sites`, the `SeenSite` of every site, by segment
        (and `decoder`), then by name.
    """

    hidden: Float[Array, "B S D"]
    router_statistics: dict[str, RouterStatistics]
    cache: Cache | None
    captured: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOutput:
    """`Features` and the logits, `[B, S, V]` float32."""

    logits: Float[Array, "B S V"]
    hidden: Float[Array, "B S D"]
    router_statistics: dict[str, RouterStatistics]
    cache: Cache | None
    captured: dict[str, Any]
