"""Context of the tokens in a forward pass, and the one call that a layer makes at a site.

A *site* is a named place of a layer or of the decoder (`attention.query`, `feed_forward`,
`residual`, `embedding`, ...), where bricks plug in and values are captured: the layer hands over
what came in and what it computed, and goes on with what it gets back. Bricks are arguments of the
forward pass, stacked over the layers of a segment like the layers themselves, so attaching,
swapping or mixing them needs no new layer class, and no recompilation while shapes agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.random import fold_in
from jaxtyping import Array, Bool, Float, Int, Key

from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.layers.cache import SegmentCache
from modbrick.layers.memory import Attended
from modbrick.layers.offer import NOTHING, Offer
from modbrick.parallel.choice import Choice
from modbrick.parameters import flatten, nest

SUBLAYERS = ("attention", "feed_forward")


class SiteBrick(Protocol):
    """Interface of bricks that are attached at a site: a pytree with this call."""

    def __call__(
        self,
        inputs: Float[Array, "B S ..."],
        outputs: Float[Array, "B S ..."],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S ..."]:
        """Returns the new outputs, of the shape and dtype of `outputs`.

        `outputs` may have more axes before its last than `inputs` (the expert slots of queries).
        `choice` says which of the attached bricks each token uses; None: all, in their order.
        `offer` is what the site has beside them.
        """
        ...


Hook = Literal["outputs", "norm", "weights", "tokens", "memory", "prompt"]
"""What a brick at a site gets hold of.

`outputs` of a map, which it changes token by token; normalised values and outputs of a `norm`; the
`weights` themselves, for all tokens; `tokens` and their embeddings, with features of the call;
`memory`, keys and values in front of every document; or a `prompt`, embeddings in front of it.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeenSite:
    """What went in and out at a site, of which hook it is, and what is known of its map.

    Attributes:
      inputs, outputs: as they passed.
      hook: of the site.
      linear: whether it offers the weight of a linear map.
      experts: how many the bank in front of it has; 0: there is none.
    """

    inputs: Float[Array, "B S ..."]
    outputs: Float[Array, "B S ..."]
    hook: Hook = dataclasses.field(metadata={"static": True})
    linear: bool = dataclasses.field(metadata={"static": True})
    experts: int = dataclasses.field(metadata={"static": True})


SiteBricks = Mapping[str, tuple[Any, ...]]
"""Bricks of one layer (or, stacked, of a segment), by site, in the order in which they apply.

Each has the call of its site's hook: `SiteBrick`, `MemoryBrick`, `PromptBricks`.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bricks:
    """Everything attached to a decoder.

    Attributes:
      segments: for each segment by index as text, the bricks at its layers' sites; every array has
        a leading axis over the segment's layers.
      decoder: bricks at the decoder's own sites, `embedding`, `norm` and `head`.
    """

    segments: Mapping[str, SiteBricks] = dataclasses.field(default_factory=dict)
    decoder: SiteBricks = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Rules for which keys `[B, C]` the queries `[B, S]` of a call see.

    Attributes:
      offset: index among the keys at which query 0 stands.
      key_mask: keys that are no padding; None: all.
      query_segment_ids, key_segment_ids: documents, which do not see each other; None: one
        document.
    """

    offset: Int[Array, ""] | int = 0
    key_mask: Bool[Array, "B C"] | None = None
    query_segment_ids: Int[Array, "B S"] | None = None
    key_segment_ids: Int[Array, "B C"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Context:
    """Record that the layers of one forward pass share: about its tokens, and what they add.

    A layer reads it, calls `at` at each of its sites, and puts statistics and cache into it; a
    segment makes one for each layer (`of_layer`).

    Attributes:
      positions: of each token in its document; None where no layer runs.
      visibility: which keys the tokens see.
      counted: tokens that count in router statistics; None: all.
      random_keys: one for each sequence (at the head, for each token), of sampled routing and of
        what bricks drop; None: nothing is drawn.
      bricks: attached to the decoder or to the layer at hand.
      choice: which of the attached bricks each token uses; None: all of them.
      cache: keys and values of the segment; None: none is kept.
      layer: index of the layer at hand in its segment.
      statistics: totals of the routers that ran, by sublayer.
      captured: what `capture` asked for, by name.
      execution: which implementations to use.
      capture: names of what is captured, see `Decoder.__call__`.
    """

    positions: Int[Array, "B S"] | None = None
    visibility: Visibility = Visibility()
    counted: Bool[Array, "B S"] | None = None
    random_keys: Key[Array, "B *S"] | None = None
    bricks: SiteBricks = dataclasses.field(default_factory=dict)
    choice: Choice | None = None
    cache: SegmentCache | None = None
    layer: Int[Array, ""] | None = None
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    captured: dict[str, Any] = dataclasses.field(default_factory=dict)
    execution: ExecutionConfig = dataclasses.field(
        default=ExecutionConfig(), metadata={"static": True}
    )
    capture: frozenset[str] = dataclasses.field(default=frozenset(), metadata={"static": True})

    def at(
        self,
        site: str,
        inputs: Float[Array, "B S ..."],
        outputs: Float[Array, "B S ..."],
        offer: Offer = NOTHING,
        hook: Hook = "outputs",
    ) -> Float[Array, "B S ..."]:
        """Returns the outputs of a site after the bricks attached there; captures them if asked.

        Args:
          site: its name within the layer or the decoder.
          inputs: what the layer computed the outputs from.
          outputs: what it computed.
          offer: what bricks may need beside them.
          hook: what they get hold of.
        """
        if site in self.bricks:
            offer = dataclasses.replace(
                offer, outputs=outputs, random_keys=self.random_keys, site=site
            )
        for brick in self.bricks.get(site, ()):
            outputs = brick(inputs, outputs, self.choice, offer)
        self.record(site, outputs)
        self.declare(site, inputs, outputs, hook, offer)
        return outputs

    def in_front(self, site: str, attended: Attended) -> Float[Array, "B S N W"]:
        """Returns the outputs of attention after what stands in front of every document.

        Args:
          site: its name within the layer.
          attended: what attention to the tokens of the document gave.
        """
        for brick in self.bricks.get(site, ()):
            attended = brick(attended, self.choice)
        self.record(site, attended.output)
        return attended.output

    def declare(
        self, site: str, inputs: Array, outputs: Array, hook: Hook, offer: Offer = NOTHING
    ) -> None:
        """Says that there is a site, where somebody asks for all of them."""
        if "sites" in self.capture:
            weight = offer.weight
            experts = len(weight) if weight is not None and offer.experts is not None else 0
            seen = SeenSite(inputs, outputs, hook, weight is not None, experts)
            self.captured.setdefault("sites", {})[site] = seen

    def weights(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a layer's parameters, nested, after the bricks attached at them.

        Each is a site of its name. Bricks see a weight as the output of a single token, float32.

        Raises:
          InputError: bricks are chosen token by token, or by ids that are not known here.
        """
        flat = flatten(parameters)
        if not any(map(self.looks_at, flat)):
            return parameters
        return nest({name: self._weight(name, value) for name, value in flat.items()})

    def _weight(self, site: str, value: Array) -> Array:
        if not self.looks_at(site):
            return value
        choice = self.choice
        if choice is not None and site in self.bricks:
            if not choice.alike:
                raise InputError(
                    f"the brick at {site} changes a weight for all tokens: no brick_ids or "
                    "brick_sets choose beside it (in a call of a model that is not compiled, the "
                    "same for all may); fold it into the weights to choose among others"
                )
            choice = choice.first()
        of_site = dataclasses.replace(self, choice=choice)
        one = value[None, None].astype(jnp.float32)
        return of_site.at(site, one, one, hook="weights")[0, 0]

    def looks_at(self, site: str) -> bool:
        """Returns whether anything at a site needs its inputs, which may cost something to make."""
        return site in self.bricks or self.captures(site)

    def captures(self, site: str) -> bool:
        """Returns whether what passes at a site is captured."""
        return site in self.capture or "sites" in self.capture

    def record(self, name: str, value: Any) -> None:
        """Captures a value if it was asked for."""
        if name in self.capture:
            self.captured[name] = value

    def random_keys_of(self, sublayer: str) -> Key[Array, "B"] | None:
        """Returns the random keys of a sublayer's router."""
        if self.random_keys is None:
            return None
        random_keys = jax.vmap(jax.random.split, out_axes=1)(self.random_keys)
        return random_keys[SUBLAYERS.index(sublayer)]

    def remember(
        self, keys: Float[Array, "B S G W"], values: Float[Array, "B S G W"]
    ) -> tuple[Float[Array, "B C G W"], Float[Array, "B C G W"]]:
        """Writes the tokens' keys and values into the cache; returns all that are known so far."""
        if self.cache is None:
            return keys, values
        assert self.layer is not None, "a cache is of a segment's layers"
        self.cache, known_keys, known_values = self.cache.write(
            self.layer, self.visibility.offset, keys, values
        )
        return known_keys.astype(keys.dtype), known_values.astype(values.dtype)

    def of_layer(
        self,
        layer: Int[Array, ""],
        first_layer: int,
        bricks: SiteBricks,
        cache: SegmentCache | None,
    ) -> Context:
        """Returns the context of one layer, which has left nothing behind yet.

        Args:
          layer: its index in the segment.
          first_layer: absolute index of the segment's first layer.
          bricks: attached to the layer.
          cache: of the segment.
        """
        random_keys = self.random_keys
        if random_keys is not None:
            random_keys = jax.vmap(fold_in, (0, None))(random_keys, first_layer + layer)
        return dataclasses.replace(
            self,
            layer=layer,
            random_keys=random_keys,
            bricks=bricks,
            cache=cache,
            statistics={},
            captured={},
        )

    def with_results(
        self, cache: SegmentCache | None, statistics: dict[str, Any], captured: dict[str, Any]
    ) -> Context:
        """Returns the context of a segment that has run."""
        return dataclasses.replace(self, cache=cache, statistics=statistics, captured=captured)
