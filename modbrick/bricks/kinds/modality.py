"""Modality: what an encoder makes of an image, a sound, a table, in place of tokens.

As in LLaVA (arXiv 2304.08485, section 4.1; an MLP from 2310.03744) and, with learned queries,
BLIP-2 (arXiv 2301.12597, section 3.1, as one cross-attention).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.lora import added, product
from modbrick.config import Activation
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.activations import ACTIVATIONS
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.layers.projections import matmul
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class Modality:
    """x + scale · MLP(f) where a row has the placeholder: for its nth one f is the nth feature.

    Features are `[B, P, width]`, among the `brick_features` of a call. With queries, the nth
    placeholder of a row has what the nth query finds among all features of the row:
    softmax(query · features / √width) features. Placeholders beyond them have nothing. A feature of
    zeros is padding, behind those of a row that has fewer: it is as if it were not there.

    Several modalities of a token add up, in any order.

    Attributes:
      placeholder: id of the token that marks positions.
      width: of a feature.
      features: their name among those of a call.
      hidden: width of the hidden layer; None: one linear map.
      queries: how many learned queries; 0: none, features are taken in their order.
      activation: of the hidden layer.
      scale: by what the change is multiplied.
    """

    placeholder: int
    width: int
    features: str = "features"
    hidden: int | None = 256
    queries: int = 0
    activation: Activation = "gelu"
    scale: float = 1.0
    kind: Literal["modality"] = "modality"
    hook: ClassVar[Hook] = "tokens"

    def __post_init__(self) -> None:
        for name, least in (("placeholder", 0), ("width", 1), ("hidden", 1), ("queries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} of a modality must be at least {least}, got {value}")

    @property
    def form(self) -> Insertion:
        """What computes it."""
        activation = None if self.hidden is None else self.activation
        return Insertion(self.features, self.width, self.placeholder, self.queries > 0, activation)

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns the maps, and the queries; the last map is zero: nothing changes at first.

        Raises:
          InputError: the placeholder is no token of the model.
        """
        if self.placeholder >= site.input_width:
            raise InputError(
                f"the placeholder {self.placeholder} is no token of a vocabulary of "
                f"{site.input_width}"
            )
        leaves = {}
        if self.queries:
            shape = (self.queries, self.width)
            leaves["queries"] = LeafInfo(shape, ("position", "brick_input"), _normal)
        inner, zero = self.width, constant(0.0)
        if self.hidden is not None:
            inner = self.hidden
            down = (self.width, inner)
            leaves["down"] = LeafInfo(down, ("brick_input", "rank"), _fan_in)
            leaves["down_bias"] = LeafInfo((inner,), ("rank",), zero)
        out = site.output_width
        axes = ("brick_input" if self.hidden is None else "rank", "brick_output")
        leaves["up"] = LeafInfo((inner, out), axes, zero)
        leaves["up_bias"] = LeafInfo((out,), ("brick_output",), zero)
        return leaves

    def constants(self) -> dict[str, float]:
        """Returns the scale and the number of queries."""
        return {"scale": self.scale, "count": float(self.queries)}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Refuses, as it depends on more than the tokens."""
        raise InputError("a modality depends on more than tokens, no weight can hold it")


@dataclasses.dataclass(frozen=True)
class Insertion:
    """Form of modalities and of knowledge: puts features where a row has the placeholder.

    `up` `[N, hidden, out]`, `up_bias`, `scale`; with an activation `down` `[N, width, hidden]` and
    `down_bias`; with queries `queries` `[N, Q, width]` and `count` of them.
    """

    features: str
    width: int
    placeholder: int
    queried: bool
    activation: Activation | None

    def __call__(
        self,
        leaves: Leaves,
        inputs: Int[Array, "B S"],
        outputs: Float[Array, "B S D"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S D"]:
        """Adds the features of the call to the embeddings, computed in float32."""
        features = offer.features.get(self.features)
        if features is None:
            return outputs
        if features.shape[-1] != self.width:
            raise InputError(
                f"brick_features {self.features!r} are of width {features.shape[-1]}, their brick "
                f"is for {self.width}"
            )
        features = features.astype(jnp.float32)
        marked = inputs == self.placeholder
        number = jnp.cumsum(marked, axis=1) - 1
        if choice is None:
            return added(outputs, self._of_first(leaves, features, marked, number))
        # Only marked tokens go through the products.
        chosen = Choice(jnp.where(marked[..., None], choice.ids, -1), choice.weights)
        for place in chosen.places():
            outputs = added(outputs, self._of_place(leaves, features, number, place))
        return outputs

    def _of_first(
        self,
        leaves: Leaves,
        features: Float[Array, "B P W"],
        marked: Bool[Array, "B S"],
        number: Int[Array, "B S"],
    ) -> Float[Array, "B S D"]:
        first = {name: leaf[0] for name, leaf in leaves.items()}
        known = marked & _known(features, number)
        if self.queried:
            queries = jnp.broadcast_to(first["queries"], (len(features), *first["queries"].shape))
            known = marked & (number < first["count"]) & _any(features)
            features = _found(queries, features)
        if self.activation is not None:
            features = ACTIVATIONS[self.activation](
                product(features, first["down"]) + first["down_bias"]
            )
        mapped = (matmul(features, first["up"]) + first["up_bias"]) * first["scale"]
        return jnp.where(known[..., None], _taken(mapped, number), 0.0)

    def _of_place(
        self,
        leaves: Leaves,
        features: Float[Array, "B P W"],
        number: Int[Array, "B S"],
        place: Choice,
    ) -> Float[Array, "B S D"]:
        if self.queried:
            known = number < place.take(leaves["count"][:, None], 0.0)[..., 0, 0]
            known = known & _any(features)
            row = jnp.maximum(place.ids[..., 0], 0)
            last = leaves["queries"].shape[1] - 1
            x = _found(leaves["queries"][row, jnp.clip(number, 0, last)], features)
        else:
            known, x = _known(features, number), _taken(features, number)
        place = Choice(jnp.where(known[..., None], place.ids, -1), place.weights)
        factors = place.factors(leaves["scale"])
        if self.activation is None:
            hidden = x[..., None, :]
        else:
            hidden = place.map(x, leaves["down"]) + place.take(leaves["down_bias"], 0.0)
            hidden = ACTIVATIONS[self.activation](hidden)
        change = place.reduce(hidden, leaves["up"], factors)
        return change + (place.take(leaves["up_bias"], 0.0) * factors[..., None]).sum(-2)


def _taken(values: Float[Array, "B P W"], number: Int[Array, "B S"]) -> Float[Array, "B S W"]:
    """Returns the value of each token's number; of the nearest where there is none."""
    if not values.shape[1]:
        return jnp.zeros((*number.shape, values.shape[2]), values.dtype)
    index = jnp.clip(number, 0, values.shape[1] - 1)
    return jnp.take_along_axis(values, index[..., None], axis=1)


def _known(features: Float[Array, "B P W"], number: Int[Array, "B S"]) -> Bool[Array, "B S"]:
    """Returns whether there is a feature of each token's number."""
    return (number < features.shape[1]) & _taken(features, number).any(-1)


def _any(features: Float[Array, "B P W"]) -> Bool[Array, "B 1"]:
    """Returns whether there are features of each row."""
    return features.any((-1, -2))[:, None]


def _found(
    queries: Float[Array, "B S W"], features: Float[Array, "B P W"]
) -> Float[Array, "B S W"]:
    """Returns what queries find among the features of their row."""
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("bsw,bpw->bsp", queries, features, precision=exact)
    there = features.any(-1)[:, None]
    scores = jnp.where(there, scores / features.shape[-1] ** 0.5, jnp.finfo(jnp.float32).min)
    weights = jnp.where(there, jax.nn.softmax(scores, axis=-1), 0.0)
    return jnp.einsum("bsp,bpw->bsw", weights, features, precision=exact)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "Q W"]:
    return jax.random.normal(key, shape, jnp.float32)


def _fan_in(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "W H"]:
    return jax.random.normal(key, shape, jnp.float32) / shape[0] ** 0.5
