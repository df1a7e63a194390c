"""Emergent bricks out of a model: experts, routers, projections, layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.bricks.kinds.emergent import Emergent
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.library.manifest import Base, Granularity, Manifest
from modbrick.models.stored import StoredModel


def extract_brick(
    model: StoredModel,
    address: str,
    *,
    name: str | None = None,
    licence: str = "",
    tags: Sequence[str] = (),
    notes: str = "",
) -> tuple[Brick, Manifest]:
    """Reads a brick that a model is made of, and says what is known of it.

    Plugged into another model with such a place (`--allow_base=any`), it stands there instead of
    that model's own.

    Args:
      model: the model.
      address: of one brick in its layers: `layer.3.feed_forward.expert.5`,
        `layer.3.attention.router`, `layer.3`.
      name: of the brick; None: the address, with - between its parts.
      licence: under which it may be used.
      tags: words to find it by.
      notes: free text.

    Raises:
      InputError: no address of the model, or one of several bricks or of something outside of the
        layers; or the model is a run of bricks.
    """
    if model.bricks:
        raise InputError(f"{model.origin} has bricks of its own: name the model that they are for")
    name = name or re.sub(r"[^A-Za-z0-9_]+", "-", address)
    table = parameter_table(model.config)
    chosen = table.select([address])
    outside = [path for path in chosen if "layer" not in table[path].axes]
    if outside:
        raise InputError(f"{address} is not in a layer: extract a layer or a part of one")
    (layer, expert) = _place(address, chosen)
    values, sites = {}, []
    for path, array in model.read(paths=list(chosen)).items():
        number = table[path].address(layer=layer).split(".")[1]
        sites.append(f"layer.{number}.{path.split('.', 2)[2]}")
        weight = array[layer] if expert is None else array[layer, expert]
        values[f"{sites[-1]}.weight"] = np.asarray(weight, np.float32)
    config = BrickConfig(tuple(sites), Emergent(expert))
    granularity: Granularity = "layer" if address.count(".") < 2 else "neuron group"
    manifest = Manifest.of(
        name,
        config,
        model.config,
        granularity=granularity,
        base=Base(model.config, model.fingerprint()),
        tokenizer=model.tokenizer_identity(),
        licence=licence,
        tags=tuple(tags),
        notes=notes,
    )
    return Brick(config, values), manifest


def _place(address: str, chosen: Mapping[str, np.ndarray]) -> tuple[int, int | None]:
    """Returns the layer that is covered, in its segment, and the expert; None: all there are."""
    layers = {
        (path.split(".")[1], int(layer))
        for path, mask in chosen.items()
        for layer in np.argwhere(mask)[:, 0]
    }
    if len(layers) > 1:
        raise InputError(f"{address} covers {len(layers)} layers: name one of them")
    ((_, layer),) = layers
    experts: set[int | None] = set()
    for mask in chosen.values():
        covered = np.flatnonzero(mask[layer])
        whole = mask.ndim == 1 or len(covered) == mask.shape[1]
        experts |= {None} if whole else set(covered.tolist())
    if len(experts) > 1:
        raise InputError(f"{address} covers several experts: name one of them, or a layer")
    return layer, experts.pop()
