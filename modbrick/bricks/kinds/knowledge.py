"""Knowledge: vectors of entities behind their mentions (map-tuning, arXiv 2305.17691)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from modbrick.bricks.kinds.kind import LeafInfo, Values
from modbrick.bricks.kinds.linear import LinearMap
from modbrick.bricks.kinds.modality import Insertion, Modality
from modbrick.decoder.sites import Hook, Site


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """x + (entity map + bias) where a row has the placeholder, behind the mention of an entity.

    The vectors `[B, P, width]` of a row's entities, in the order of their mentions, are among the
    `brick_features` of a call; `modbrick.data.entities` finds mentions. They stay as they are, only
    the map is trained. Several of a token add up, in any order.

    Attributes:
      placeholder: id of the token that marks positions.
      width: of an entity's vector.
      features: their name among those of a call.
    """

    placeholder: int
    width: int
    features: str = "entities"
    kind: Literal["knowledge"] = "knowledge"
    hook: ClassVar[Hook] = "tokens"

    def __post_init__(self) -> None:
        _ = self._map

    @property
    def _map(self) -> Modality:
        return Modality(self.placeholder, self.width, self.features, hidden=None)

    @property
    def form(self) -> Insertion:
        """What computes it."""
        return self._map.form

    def leaves(self, site: Site) -> dict[str, LeafInfo]:
        """Returns the map `up` and its bias, zeros: nothing changes at first."""
        return self._map.leaves(site)

    def constants(self) -> dict[str, float]:
        """Returns those of the form."""
        return self._map.constants()

    def folded(self, leaves: Values, into: LinearMap) -> LinearMap:
        """Refuses, as it depends on more than the tokens."""
        return self._map.folded(leaves, into)
