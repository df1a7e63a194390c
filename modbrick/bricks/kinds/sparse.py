"""Sparse delta: a change of some entries of a weight (diff pruning, arXiv 2012.07463)."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from modbrick.bricks.kinds.kind import LeafInfo, Leaves, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import constant
from modbrick.parallel.choice import Choice


@dataclasses.dataclass(frozen=True)
class SparseDelta:
    """W with `values` added at `positions`; several add up, in any order.

    It changes the weight for all tokens alike: ids that differ between them are refused.

    Attributes:
      density: share of the entries of a weight that may change; at least one does.
    """

    density: float = 0.005
    kind: Literal["sparse"] = "sparse"
    hook: ClassVar[Hook] = "weights"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"density must be above 0 and at most 1, got {self.density}")

    @property
    def form(self) -> Scattered:
        """What computes it."""
        return Scattered()

    def count(self, site: Site) -> int:
        """Returns how many entries of a weight change."""
        return max(1, round(self.density * math.prod(site.shape)))

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `values`, zeros, and `positions` in the flattened weight, which are not trained.

        At first they are a random sample without repetition, ascending: of as many equal stretches
        of the weight one position each.

        Raises:
          InputError: a weight that is too large.
        """
        size, shape = math.prod(site.shape), (self.count(site),)
        if size >= 2**31:
            raise InputError(
                f"{site.name} has {size} entries, positions of a sparse delta are of 32 bits: "
                "leave it out"
            )
        return {
            "values": LeafInfo(shape, ("brick_entry",), constant(0.0)),
            "positions": LeafInfo(
                shape,
                ("brick_entry",),
                functools.partial(_sample, size),
                dtype="int32",
                trained=False,
                below=size,
            ),
        }

    def constants(self) -> dict[str, float]:
        """Returns nothing."""
        return {}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Adds the values to the weight, whatever its shape."""
        update = np.zeros(into.weight.size)
        np.add.at(update, leaves["positions"].astype(np.int64), leaves["values"])
        return into.plus(update.reshape(into.weight.shape))


@dataclasses.dataclass(frozen=True)
class Scattered:
    """Form of sparse deltas: `values` `[N, n]`, `positions` `[N, n]`.

    Shorter ones are padded with zeros to be added to the first entry.
    """

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "1 1 ..."],
        outputs: Float[Array, "1 1 ..."],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "1 1 ..."]:
        """Adds the values of the bricks, in float32."""
        del inputs, offer
        values, positions = leaves["values"][0], leaves["positions"][0]
        if choice is not None:
            values = choice.take(leaves["values"], 0.0) * choice.factors()[..., None]
            positions = leaves["positions"][jnp.maximum(choice.ids, 0)]
        # By all axes, not of the flat weight, so that a divided one stays so.
        where = jnp.unravel_index(positions.reshape(-1), outputs.shape)
        changed = outputs.astype(jnp.float32).at[where].add(values.reshape(-1))
        return changed.astype(outputs.dtype)


def _sample(size: int, key: jax.Array, shape: tuple[int, ...]) -> Int[Array, "n"]:
    """Returns one position of each of n stretches of `size` entries, int32."""
    (count,) = shape
    bounds = np.arange(count + 1, dtype=np.int64) * size // count
    first, length = bounds[:-1].astype(np.int32), np.diff(bounds).astype(np.int32)
    return jnp.asarray(first) + jax.random.randint(key, shape, 0, length, jnp.int32)
