"""Places of a brick in a model: which sites of which layers its patterns cover."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from modbrick.bricks.config import BrickConfig
from modbrick.config import ModelConfig
from modbrick.decoder.sites import Site, model_sites
from modbrick.errors import InputError
from modbrick.parameters.addresses import LAYER, covered
from modbrick.schema import nearest


@dataclasses.dataclass(frozen=True)
class Attachment:
    """A site where a brick is attached, in one layer or several of a segment.

    Attributes:
      segment: by index as text; "": the decoder's own site.
      site: the place.
      layers: indices in the segment's stack, ascending; empty for the decoder's own site.
      first_layer: absolute index of the segment's first layer.
    """

    segment: str
    site: Site
    layers: tuple[int, ...] = ()
    first_layer: int = 0

    @property
    def path(self) -> str:
        """Name by which arrays are stored: `segments.0.attention.query`, `decoder.embedding`."""
        where = f"segments.{self.segment}" if self.segment else "decoder"
        return f"{where}.{self.site.name}"

    @property
    def addresses(self) -> list[str]:
        """Addresses of the site, one a layer."""
        return [self.address(layer) for layer in self.layers or (None,)]

    def address(self, layer: int | None = None) -> str:
        """Returns the address of the site in one layer of the stack."""
        if layer is None:
            return self.site.name
        return f"layer.{self.first_layer + layer}.{self.site.name}"


@functools.lru_cache(maxsize=256)
def attachments(model: ModelConfig, config: BrickConfig) -> tuple[Attachment, ...]:
    """Lists where a brick is attached in a model, in the order of the sites.

    A pattern covers sites of the kind's hook only.

    Raises:
      InputError: a pattern that covers no site, or a site that the kind does not fit.
    """
    everything = list(_places(model))
    places = [place for place in everything if place.site.hook == config.settings.hook]
    chosen = [np.zeros(max(len(place.layers), 1), bool) for place in places]
    for pattern in config.at:
        found = [_covered(pattern, place, whole=True) for place in places]
        if not any(mask.any() for mask in found):
            found = [_covered(pattern, place, whole=False) for place in places]
        if not any(mask.any() for mask in found):
            if any(_covered(pattern, place, whole=False).any() for place in everything):
                raise InputError(f"{config.settings.kind} cannot be attached at {pattern!r}")
            known = dict.fromkeys(_template(place) for place in places)
            remark = nearest(pattern, [name.replace(LAYER, "*") for name in known])
            raise InputError(f"no site {pattern!r} in this model; {remark}")
        chosen = [mask | more for mask, more in zip(chosen, found, strict=True)]
    result = []
    for place, mask in zip(places, chosen, strict=True):
        if mask.any():
            config.settings.leaves(place.site)  # says whether it fits
            layers = tuple(np.flatnonzero(mask).tolist()) if place.layers else ()
            result.append(dataclasses.replace(place, layers=layers))
    return tuple(result)


def _places(model: ModelConfig) -> Iterator[Attachment]:
    """Yields every site of a model, each with all layers that have it."""
    sites = model_sites(model)
    for name, first_layer, segment in model.placed_segments():
        for site in sites.layers[name]:
            yield Attachment(name, site, tuple(range(segment.repeats)), first_layer)
    for site in sites.decoder:
        yield Attachment("", site)


def _template(place: Attachment) -> str:
    return f"layer.{LAYER}.{place.site.name}" if place.segment else place.site.name


def _covered(pattern: str, place: Attachment, *, whole: bool) -> np.ndarray:
    """Returns which layers of a place a pattern covers; one entry for the decoder's own."""
    template = _template(place)
    size = max(len(place.layers), 1)
    if whole and pattern.count(".") != template.count("."):
        return np.zeros(size, bool)
    layers = range(place.first_layer, place.first_layer + len(place.layers))
    return covered(pattern, template, {"layer": layers} if place.segment else {}).reshape(size)
