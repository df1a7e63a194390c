"""Attaching bricks: from addresses of sites to the stacked argument of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from modbrick.config import ModelConfig
from modbrick.decoder.sites import Site, model_sites
from modbrick.errors import InputError
from modbrick.layers.context import Bricks, SiteBrick
from modbrick.schema import nearest

NewBrick = Callable[[jax.Array, Site], SiteBrick]
"""Makes one layer's brick at a site, from a random key and the site."""


def attach(config: ModelConfig, new: Mapping[str, NewBrick], *, key: jax.Array) -> Bricks:
    """Makes a brick for every layer at each named site, stacked as the forward pass takes them.

    Args:
      config: the model.
      new: for each site, what makes a layer's brick there. A site is `layer.*.NAME` (every layer
        that has it; `model_sites` lists names), `embedding` or `head`.
      key: split over sites and layers.

    Raises:
      InputError: a site that no layer has.
    """
    segments: dict[str, dict[str, tuple[SiteBrick, ...]]] = {}
    decoder: dict[str, tuple[SiteBrick, ...]] = {}
    sites = model_sites(config)
    own = {site.name: site for site in sites.decoder}
    of_layers = {
        segment: {f"layer.*.{site.name}": site for site in found}
        for segment, found in sites.layers.items()
    }
    known = {*own, *(address for found in of_layers.values() for address in found)}
    for number, (address, make) in enumerate(new.items()):
        if address not in known:
            raise InputError(f"no site {address!r} in this model; {nearest(address, known)}")
        site_key = jax.random.fold_in(key, number)
        if address in own:
            decoder[address] = (make(site_key, own[address]),)
            continue
        for name, first_layer, segment in config.placed_segments():
            if address in of_layers[name]:
                site = of_layers[name][address]
                layers = [
                    make(jax.random.fold_in(site_key, first_layer + layer), site)
                    for layer in range(segment.repeats)
                ]
                stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
                segments.setdefault(name, {})[site.name] = (stacked,)
    return Bricks(segments, decoder)
