"""Attaching bricks: from addresses of sites to the stacked argument of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from modbrick.config import ModelConfig
from modbrick.errors import InputError
from modbrick.layers.sites import Bricks, Site, SiteBrick, decoder_sites, layer_sites
from modbrick.schema import nearest

BrickMaker = Callable[[jax.Array, Site], SiteBrick]


def attach(config: ModelConfig, makers: Mapping[str, BrickMaker], *, key: jax.Array) -> Bricks:
    """Makes a brick for every layer at each named site, stacked as the forward pass takes them.

    Args:
      config: the model.
      makers: from a site to a function of (key, site) that makes one layer's brick there. A site is
        `layer.*.NAME` (every layer that has it; `layer_sites` lists names), `embedding` or `head`.
      key: split over sites and layers.

    Raises:
      InputError: a site that no layer has.
    """
    segments: dict[str, dict[str, tuple[SiteBrick, ...]]] = {}
    decoder: dict[str, tuple[SiteBrick, ...]] = {}
    own = {site.name: site for site in decoder_sites(config)}
    known = set(own)
    for number, (address, make) in enumerate(makers.items()):
        site_key = jax.random.fold_in(key, number)
        if address in own:
            decoder[address] = (make(site_key, own[address]),)
            continue
        found, first = False, 0
        for index, segment in enumerate(config.segments):
            sites = {f"layer.*.{s.name}": s for s in layer_sites(segment.layer, config.width)}
            known |= set(sites)
            if address in sites:
                found, site = True, sites[address]
                layers = [
                    make(jax.random.fold_in(site_key, first + layer), site)
                    for layer in range(segment.repeats)
                ]
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
                segments.setdefault(str(index), {})[site.name] = (stacked,)
            first += segment.repeats
        if not found:
            raise InputError(f"no site {address!r} in this model; {nearest(address, known)}")
    return Bricks(segments, decoder)
