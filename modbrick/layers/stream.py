"""What the layers of one forward pass share about the tokens in the residual stream."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """Positions, visibility and identity of a call's tokens `[B, S]` and of the keys `[B, C]`.

    Attributes:
      positions: of each token in its document.
      offset: index among the keys at which token 0 of this call stands.
      key_mask: keys that can be attended to; None: all.
      query_segment_ids, key_segment_ids: documents, which do not see each other; None: one
        document.
      counted: tokens that count in router statistics; None: all.
      brick_ids: variant of each attached brick for each token; None: variant 0.
    """

    positions: Int[Array, "B S"]
    offset: Int[Array, ""] | int
    key_mask: Bool[Array, "B C"] | None
    query_segment_ids: Int[Array, "B S"] | None
    key_segment_ids: Int[Array, "B C"] | None
    counted: Bool[Array, "B S"] | None
    brick_ids: Int[Array, "B S"] | None
