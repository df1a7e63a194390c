"""Linear maps as bricks are folded into them."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float64

from modbrick.errors import InputError


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """y = x weight + bias, of one projection or of each expert of a bank, in float64.

    Attributes:
      name: address of its site, for messages.
      weight: `[in, out]`, or `[experts, in, out]`.
      bias: None: it has none.
      original: the weight before any brick that changes the map's outputs; None: `weight`.
    """

    name: str
    weight: Float64[np.ndarray, "*E I O"]
    bias: Float64[np.ndarray, "O"] | None = None
    original: Float64[np.ndarray, "*E I O"] | None = None

    def plus(self, update: Float64[np.ndarray, "*#E #I O"]) -> LinearMap:
        """Returns the map with an update added to its weight; one without experts to each alike."""
        return dataclasses.replace(self, weight=self.weight + update)

    def scaled(self, factor: Float64[np.ndarray, "O"]) -> LinearMap:
        """Returns the map with its outputs multiplied."""
        bias = None if self.bias is None else self.bias * factor
        return dataclasses.replace(self, weight=self.weight * factor, bias=bias)

    def shifted(self, vector: Float64[np.ndarray, "O"]) -> LinearMap:
        """Returns the map with a vector added to its outputs.

        Raises:
          InputError: it has no bias.
        """
        if self.bias is None:
            raise InputError(f"a bias cannot be folded into {self.name}, which has none")
        return dataclasses.replace(self, bias=self.bias + vector)


class Reader(LinearMap):
    """The map that reads a site: only a scale of what it reads can be folded into it.

    `weight` is `[out, in]`, so that its last axis is that of the site.
    """

    def plus(self, update: Float64[np.ndarray, "#I O"]) -> LinearMap:
        """Refuses, as it is not the map that makes what it reads."""
        raise InputError(f"only a scale can be folded at {self.name}")

    def shifted(self, vector: Float64[np.ndarray, "O"]) -> LinearMap:
        """Refuses likewise."""
        return self.plus(vector)
