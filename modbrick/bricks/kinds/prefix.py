"""Prefix: keys and values in front of every document (arXiv 2101.00190, section 4)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.memory import Attended
from modbrick.layers.parameters import constant, normal
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Keys and values of a layer's attention, farther than all tokens of a document.

    They are as attention reads them: after norms, clipping and rotation. Place j of P stands at
    position j - P of each document, and a sliding window passes over what lies behind it. In
    stick-breaking attention they get what a document's tokens left of the stick, the last of them
    first; in softmax attention their share.

    Prefixes of a token stand in the order of its set, the first the farthest, each with positions
    up to -1. A weight w multiplies the attention to a prefix: w e^logit, or w of the share of the
    stick that it takes; 0 changes nothing.

    Values are zeros at first: stick-breaking attention does not change at all, but that farther
    prefixes and prompts get less; softmax attention gives mass to the new keys, and its output
    shrinks.

    In PEFT, which counts a document's tokens from P on, keys of models with rotary positions are
    rotated by P positions more than here.

    Attributes:
      length: number of keys, P.
    """

    length: int = 16
    kind: Literal["prefix"] = "prefix"
    hook: ClassVar[Hook] = "memory"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"a prefix has a length of at least 1, got {self.length}")

    @property
    def form(self) -> Front:
        """What computes it."""
        return Front()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `keys`, small and random, and `values`, zeros."""
        shape, axes = (self.length, site.output_width), ("position", "brick_output")
        return {
            "keys": LeafInfo(shape, axes, normal(0.02)),
            "values": LeafInfo(shape, axes, constant(0.0)),
        }

    def constants(self) -> dict[str, float]:
        """Returns the length."""
        return {"length": float(self.length)}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Refuses: no weight does what stands in front of a document."""
        del leaves, into
        raise InputError("a prefix is no linear map")


@dataclasses.dataclass(frozen=True)
class Front:
    """Form of prefixes: `keys` and `values` `[N, P, G W]`, `length` `[N]`; the rest is padding."""

    def __call__(self, leaves: Leaves, attended: Attended, choice: Choice | None) -> Attended:
        """Attends to the prefixes of each token, computed in float32."""
        leaves = _without_padding(leaves)
        attend = _Whole(leaves, attended) if choice is None else _Chosen(leaves, attended, choice)
        weights, done, left = attended.shared(attend.logits(), attend.seen(), attend.factors())
        output = attended.output.astype(jnp.float32) * done[..., None] + attend.mixed(weights)
        output = output.astype(attended.output.dtype)
        return dataclasses.replace(attended, output=output, left=left)


@dataclasses.dataclass(frozen=True)
class _Whole:
    """All prefixes, for all tokens: they stand one after another."""

    leaves: Leaves
    attended: Attended

    def logits(self) -> Float[Array, "B S N M"]:
        """Returns those of every head."""
        queries = _queries(self.attended)
        batch, sequence, heads, width = queries.shape
        grouped = queries.reshape(batch, sequence, self.attended.groups, -1, width)
        keys = _by_head(self.leaves["keys"], self.attended)
        logits = _product("bsgrw,npgw->bsgrnp", grouped, keys)
        return self.attended.scale * logits.reshape(batch, sequence, heads, -1)

    def seen(self) -> Bool[Array, "B S 1 M"]:
        """Returns which keys each token sees."""
        lengths = self.leaves["length"].astype(jnp.int32)[None, None, :, None]
        place = jnp.arange(self.leaves["keys"].shape[1])
        return _flat(self.attended.sees(lengths, place))

    def factors(self) -> None:
        """Returns nothing: every prefix counts whole."""

    def mixed(self, weights: Float[Array, "B S N M"]) -> Float[Array, "B S N W"]:
        """Returns the values, weighted."""
        values = _by_head(self.leaves["values"], self.attended)
        batch, sequence, heads, _ = weights.shape
        count, length, groups, width = values.shape
        grouped = weights.reshape(batch, sequence, groups, heads // groups, count, length)
        mixed = _product("bsgrnp,npgw->bsgrw", grouped, values)
        return mixed.reshape(batch, sequence, heads, width)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Each token's own prefixes: every query head is multiplied by the keys of its brick and head.

    Brick i has a matrix for each of G key heads, variants i G + head of a choice by query heads.
    """

    leaves: Leaves
    attended: Attended
    choice: Choice

    @property
    def _of_heads(self) -> Choice:
        """The choice of the queries `[B, S N, K]`."""
        heads, groups = self.attended.queries.shape[2], self.attended.groups
        batch, sequence, places = self.choice.ids.shape
        key_heads = jnp.arange(heads) // (heads // groups)
        ids = self.choice.ids[:, :, None]
        ids = jnp.where(ids >= 0, ids * groups + key_heads[:, None], -1)
        return Choice(ids.reshape(batch, sequence * heads, places))

    def logits(self) -> Float[Array, "B S N M"]:
        """Returns those of every head."""
        queries = _queries(self.attended)
        batch, sequence, heads, width = queries.shape
        keys = _by_head(self.leaves["keys"], self.attended).transpose(0, 2, 3, 1)
        logits = self._of_heads.map(
            queries.reshape(batch, sequence * heads, width), keys.reshape(-1, *keys.shape[2:])
        )
        return self.attended.scale * logits.reshape(batch, sequence, heads, -1)

    def seen(self) -> Bool[Array, "B S 1 M"]:
        """Returns which keys each token sees."""
        lengths = self.choice.take(self.leaves["length"][:, None], 0.0).astype(jnp.int32)
        return _flat(self.attended.sees(lengths, jnp.arange(self.leaves["keys"].shape[1])))

    def factors(self) -> Float[Array, "B S 1 M"] | None:
        """Returns the weights of the choice."""
        if self.choice.weights is None:
            return None
        length = self.leaves["keys"].shape[1]
        return _flat(jnp.repeat(self.choice.factors()[..., None], length, axis=-1))

    def mixed(self, weights: Float[Array, "B S N M"]) -> Float[Array, "B S N W"]:
        """Returns the values, weighted."""
        values = _by_head(self.leaves["values"], self.attended).swapaxes(1, 2)
        batch, sequence, heads, _ = weights.shape
        choice = self._of_heads
        of_heads = weights.reshape(*choice.ids.shape, -1)
        mixed = choice.reduce(of_heads, values.reshape(-1, *values.shape[2:]), choice.factors())
        return mixed.reshape(batch, sequence, heads, -1)


def _without_padding(leaves: Leaves) -> Leaves:
    """Zeros where a brick has no keys: 0 times whatever else stands there might be NaN."""
    there = jnp.arange(leaves["keys"].shape[1]) < leaves["length"][:, None]
    arrays = {name: jnp.where(there[..., None], leaves[name], 0) for name in ("keys", "values")}
    return {**leaves, **arrays}


def _queries(attended: Attended) -> Float[Array, "B S N W"]:
    return attended.queries.astype(jnp.float32)


def _by_head(leaf: Float[Array, "N P A"], attended: Attended) -> Float[Array, "N P G W"]:
    return leaf.astype(jnp.float32).reshape(*leaf.shape[:2], attended.groups, -1)


def _flat(x: Shaped[Array, "B S K P"]) -> Shaped[Array, "B S 1 M"]:
    """Returns places of prefixes one after another, the same for all heads."""
    return x.reshape(*x.shape[:2], 1, -1)


def _product(subscripts: str, x: Array, y: Array) -> Array:
    return jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST)
