"""Interface of a kind of customized brick."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Array, Float, Float64

from modbrick.bricks.kinds.linear import LinearMap
from modbrick.decoder.sites import Hook, Site
from modbrick.layers.memory import Attended
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import Initialiser
from modbrick.parallel.choice import Choice

Leaves = Mapping[str, Float[Array, "N ..."]]
"""Arrays of N bricks of a kind at one site of one layer, by name, padded to one shape."""

Values = Mapping[str, Float64[np.ndarray, "..."]]
"""Arrays of one brick at one site of one layer, by name."""


@dataclasses.dataclass(frozen=True)
class LeafInfo:
    """Declaration of an array that a brick has at a site.

    Attributes:
      shape: at one site of one layer.
      axes: a logical name for each axis, for sharding rules.
      initial: maps (key, shape) to the value before training.
      padding: what a brick without this value has, which changes nothing.
      dtype: of the values.
      trained: whether training may change them.
      below: of integers, which lie between 0 and this; None: they are no indices.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    initial: Initialiser
    padding: float = 0.0
    dtype: str = "float32"
    trained: bool = True
    below: int | None = None

    def flaw(self, values: np.ndarray) -> str | None:
        """Returns what is wrong with values of this shape; None: nothing."""
        if self.below is not None and values.size:
            if not np.issubdtype(values.dtype, np.integer):
                return f"holds {values.dtype}, not indices"
            least, largest = values.min(), values.max()
            if least < 0 or largest >= self.below:
                return f"holds indices from {least} to {largest}, there are {self.below}"
        if count := np.count_nonzero(~np.isfinite(values.astype(np.float32))):
            return f"{count} values are not finite"
        return None


class Form(Protocol):
    """Static part of a kind: what bricks must share to be stacked; hashable."""

    def __call__(
        self,
        leaves: Leaves,
        inputs: Float[Array, "B S I"],
        outputs: Float[Array, "B S *K O"],
        choice: Choice | None,
        offer: Offer,
    ) -> Float[Array, "B S *K O"]:
        """Returns the new outputs, in the dtype of `outputs`.

        Args:
          leaves: of N bricks, constants included.
          inputs: what the layer computed the outputs from.
          outputs: may have more axes before their last (the expert slots of queries).
          choice: which of the bricks each token uses; None: the first of them, for all tokens.
          offer: what the site has beside inputs and outputs.
        """
        ...


class MemoryForm(Protocol):
    """Static part of a kind whose bricks are keys and values; hashable."""

    def __call__(self, leaves: Leaves, attended: Attended, choice: Choice | None) -> Attended:
        """Returns what each token has once it has attended to its bricks too.

        Args:
          leaves: of N bricks, constants included.
          attended: what attention gave so far.
          choice: which of the bricks each token uses; None: all, in their order.
        """
        ...


class Kind(Protocol):
    """Settings of a brick of a kind; a frozen record with a field `kind` of its own."""

    hook: ClassVar[Hook]
    """Sites of which hook the kind is attached at."""

    @property
    def form(self) -> Form | MemoryForm:
        """What computes it."""
        ...

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns the arrays that are trained at a site, by name.

        Raises:
          InputError: the kind does not fit the site.
        """
        ...

    def constants(self) -> dict[str, float]:
        """Returns numbers that the form needs beside them, by name; never trained."""
        ...

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Returns the linear map of a site with the brick in its weights.

        Args:
          leaves: its arrays at the site.
          into: what makes the site's outputs.

        Raises:
          InputError: this kind cannot be folded.
        """
        ...
