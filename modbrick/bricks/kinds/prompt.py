"""Prompt: trained embeddings in front of every document (arXiv 2104.08691, section 2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from modbrick.bricks.kinds.kind import LeafInfo, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.prefix import Front
from modbrick.decoder.sites import Hook, Site
from modbrick.errors import InputError
from modbrick.layers.parameters import normal


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Embeddings of P tokens that there are not, in front of every document.

    The model reads them once a call, for themselves, and makes of them keys and values in every
    layer, see `modbrick.decoder.prompts`. From there on they are a `Prefix`, farther than all
    prefixes: so much for sets, weights, windows and stick-breaking attention.

    Attributes:
      length: number of embeddings, P; at most the model's context.
      scale: standard deviation of the values at first.
    """

    length: int = 16
    scale: float = 0.02
    kind: Literal["prompt"] = "prompt"
    hook: ClassVar[Hook] = "prompt"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"a prompt has a length of at least 1, got {self.length}")

    @property
    def form(self) -> Front:
        """What computes with its keys and values."""
        return Front()

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns `embeddings`, random.

        Raises:
          InputError: it is longer than the model's context.
        """
        if site.length is not None and self.length > site.length:
            raise InputError(
                f"a prompt of length {self.length} is longer than the model's context, "
                f"{site.length}: make it shorter"
            )
        shape, axes = (self.length, site.output_width), ("position", "brick_output")
        return {"embeddings": LeafInfo(shape, axes, normal(self.scale))}

    def constants(self) -> dict[str, float]:
        """Returns the length."""
        return {"length": float(self.length)}

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Refuses: no weight does what stands in front of a document."""
        del leaves, into
        raise InputError("a prompt is no linear map")
