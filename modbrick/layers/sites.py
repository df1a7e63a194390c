"""Sites: the named places of a layer or a decoder where bricks plug in.

A brick at a site sees the inputs and the outputs that the layer computed there, and returns new
outputs. Bricks are arguments of the forward pass, stacked over the layers of a segment like the
layers themselves: attaching, swapping or mixing them needs no new layer class, and no recompilation
while shapes agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
from jaxtyping import Array, Float, Int

from modbrick.config import LayerConfig, ModelConfig


class SiteBrick(Protocol):
    """What can be attached at a site: a pytree with this call."""

    def __call__(
        self,
        inputs: Float[Array, "B S ..."],
        outputs: Float[Array, "B S ..."],
        brick_ids: Int[Array, "B S"] | None,
    ) -> Float[Array, "B S ..."]:
        """Returns the new outputs, of the shape and dtype of `outputs`.

        `outputs` may have more axes before its last than `inputs` (the expert slots of queries).
        `brick_ids` chooses one of the brick's variants for each token, -1 none; None: variant 0.
        """
        ...


SiteBricks = Mapping[str, tuple[SiteBrick, ...]]
"""Bricks of one layer (or, stacked, of a segment), by site, in the order in which they apply."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bricks:
    """Everything attached to a decoder.

    Attributes:
      segments: for each segment by index as text, the bricks at its layers' sites; every array has
        a leading axis over the segment's layers.
      decoder: bricks at the decoder's own sites, `embedding` and `head`.
    """

    segments: Mapping[str, SiteBricks] = dataclasses.field(default_factory=dict)
    decoder: SiteBricks = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Site:
    """A place to attach: its name within the layer, and the widths that come in and go out."""

    name: str
    input_width: int
    output_width: int


def layer_sites(layer: LayerConfig, width: int) -> tuple[Site, ...]:
    """Lists the sites of a layer.

    Projections have one each (`attention.query`, ...; with attention experts, `query` hands the
    brick the layer's input and every slot's queries, `output` the gate-weighted sum of the slots
    and the combined output). `attention` and `feed_forward` see a sublayer whole (where an adapter
    sits), `residual` the stream after the layer, `*.router` the router's logits. The up, gate and
    down projections are sites in a dense feed-forward only: expert banks compute them as one.
    """
    attention, feed_forward = layer.attention, layer.feed_forward
    sites = [
        Site("attention.query", width, attention.query_width),
        Site("attention.key", width, attention.key_width),
        Site("attention.value", width, attention.key_width),
        Site("attention.output", attention.query_width, width),
        Site("attention", width, width),
        Site("feed_forward", width, width),
        Site("residual", width, width),
    ]
    if attention.experts:
        sites.append(Site("attention.router", width, attention.experts.count))
    if feed_forward.experts:
        sites.append(Site("feed_forward.router", width, feed_forward.experts.count))
    else:
        sites.append(Site("feed_forward.up", width, feed_forward.hidden))
        sites.append(Site("feed_forward.down", feed_forward.hidden, width))
        if feed_forward.gated:
            sites.append(Site("feed_forward.gate", width, feed_forward.hidden))
    return tuple(sites)


def decoder_sites(config: ModelConfig) -> tuple[Site, ...]:
    """Lists the decoder's own sites: the embeddings, and the logits from the final norm."""
    return (
        Site("embedding", config.width, config.width),
        Site("head", config.width, config.vocabulary),
    )


def attach(
    bricks: SiteBricks,
    site: str,
    inputs: Float[Array, "B S ..."],
    outputs: Float[Array, "B S ..."],
    brick_ids: Int[Array, "B S"] | None,
) -> Float[Array, "B S ..."]:
    """Applies the bricks attached at `site`, in order; without any, returns `outputs`."""
    for brick in bricks.get(site, ()):
        outputs = brick(inputs, outputs, brick_ids)
    return outputs
