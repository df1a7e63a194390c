"""One pre-norm decoder layer: attention, then feed-forward, each added to the residual stream."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modbrick.config import LayerConfig
from modbrick.layers.attention import Attention
from modbrick.layers.context import Context
from modbrick.layers.feed_forward import ExpertFeedForward, FeedForward
from modbrick.layers.norms import Norm
from modbrick.layers.parameters import Initialiser
from modbrick.layers.rematerialisation import mark_between
from modbrick.parallel import constrain


class Block(nnx.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(
        self,
        config: LayerConfig,
        width: int,
        scale: float,
        expert_initialiser: Initialiser,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.attention_norm = Norm(config.norm, width, rngs=rngs)
        self.attention = Attention(config.attention, width, scale, expert_initialiser, rngs=rngs)
        self.feed_forward_norm = Norm(config.norm, width, rngs=rngs)
        feed_forward = config.feed_forward
        self.feed_forward: FeedForward | ExpertFeedForward = (
            FeedForward(feed_forward, width, scale, rngs=rngs)
            if feed_forward.experts is None
            else ExpertFeedForward(
                feed_forward, feed_forward.experts, width, scale, expert_initialiser, rngs=rngs
            )
        )

    def __call__(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Runs the layer on the residual stream."""
        multiplier = self.config.residual_multiplier
        normed = self.attention_norm(x, context, "attention_norm")
        y = context.at("attention", normed, self.attention(normed, context))
        x = mark_between(constrain(_added(x, y, multiplier), "batch", "sequence", "width"))
        normed = self.feed_forward_norm(x, context, "feed_forward_norm")
        y = context.at("feed_forward", normed, self.feed_forward(normed, context))
        x = constrain(_added(x, y, multiplier), "batch", "sequence", "width")
        return context.at("residual", x, x)


def _added(
    x: Float[Array, "B S D"], y: Float[Array, "B S D"], multiplier: float
) -> Float[Array, "B S D"]:
    """Returns x + multiplier y, rounded once."""
    total = x.astype(jnp.float32) + y.astype(jnp.float32) * multiplier
    return total.astype(x.dtype)
