"""One pre-norm decoder layer: attention, then feed-forward, each added to the stream."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from modbrick.config import LayerConfig
from modbrick.execution import ExecutionConfig
from modbrick.layers.attention import Attention
from modbrick.layers.cache import SegmentCache
from modbrick.layers.feed_forward import ExpertFeedForward, FeedForward
from modbrick.layers.norms import Norm
from modbrick.layers.parameters import Initialiser
from modbrick.layers.rematerialisation import mark_between
from modbrick.layers.router import RouterStatistics, Routing
from modbrick.layers.sites import SiteBricks, attach
from modbrick.layers.stream import Stream
from modbrick.parallel import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerRecord:
    """What a layer reports besides the stream.

    Attributes:
      statistics: router totals, by sublayer (`attention`, `feed_forward`) that has experts.
      routing: router decisions by sublayer; empty unless captured.
      attention_weights: `[B, H, S, C]`; None unless captured.
      hidden: the stream after the layer; None unless captured.
    """

    statistics: dict[str, RouterStatistics]
    routing: dict[str, Routing]
    attention_weights: Float[Array, "B H S C"] | None
    hidden: Float[Array, "B S D"] | None


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

    def __call__(
        self,
        x: Float[Array, "B S D"],
        stream: Stream,
        bricks: SiteBricks,
        execution: ExecutionConfig,
        *,
        keys: Key[Array, "B"] | None,
        cache: SegmentCache | None,
        layer: Int[Array, ""],
        capture: frozenset[str],
    ) -> tuple[Float[Array, "B S D"], SegmentCache | None, LayerRecord]:
        """Runs the layer; see `Decoder.__call__` for what can be captured."""
        attention_keys, feed_forward_keys = (
            (None, None) if keys is None else jax.vmap(jax.random.split, out_axes=1)(keys)
        )
        multiplier = self.config.residual_multiplier
        statistics: dict[str, RouterStatistics] = {}
        routing: dict[str, Routing] = {}

        normed = self.attention_norm(x)
        attended = self.attention(
            normed,
            stream,
            bricks,
            execution,
            keys=attention_keys,
            cache=cache,
            layer=layer,
            return_weights="attention_weights" in capture,
        )
        y = attach(bricks, "attention", normed, attended.output, stream.brick_ids)
        x = mark_between(constrain(_added(x, y, multiplier), "batch", "sequence", "width"))
        if attended.statistics is not None and attended.routing is not None:
            statistics["attention"], routing["attention"] = attended.statistics, attended.routing

        normed = self.feed_forward_norm(x)
        if isinstance(self.feed_forward, FeedForward):
            y = self.feed_forward(normed, stream, bricks)
        else:
            y, routing["feed_forward"], statistics["feed_forward"] = self.feed_forward(
                normed, stream, bricks, execution, feed_forward_keys
            )
        y = attach(bricks, "feed_forward", normed, y, stream.brick_ids)
        x = constrain(_added(x, y, multiplier), "batch", "sequence", "width")
        x = attach(bricks, "residual", x, x, stream.brick_ids)
        record = LayerRecord(
            statistics,
            routing if "routing" in capture else {},
            attended.weights,
            x if "hidden_states" in capture else None,
        )
        return x, attended.cache, record


def _added(
    x: Float[Array, "B S D"], y: Float[Array, "B S D"], multiplier: float
) -> Float[Array, "B S D"]:
    """Returns x + multiplier y, rounded once."""
    total = x.astype(jnp.float32) + y.astype(jnp.float32) * multiplier
    return total.astype(x.dtype)
