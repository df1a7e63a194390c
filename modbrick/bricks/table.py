"""Parameters of customized bricks, as entries of a model's table, and their initial values.

A brick's array lies under `bricks.NAME.segments.0.attention.query.down`, stacked over the layers of
the segment where it is attached, or `bricks.NAME.decoder.embedding.down`. Its address is
`brick.NAME.layer.3.attention.query.down`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from modbrick.bricks.attachment import Attachment, attachments
from modbrick.bricks.config import BrickConfig, check_name
from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.kind import LeafInfo
from modbrick.bricks.kinds.lora import LoRA
from modbrick.config import ModelConfig
from modbrick.parameters import ParameterInfo

BRICKS = "bricks"
"""First component of the paths of bricks."""


def brick_infos(model: ModelConfig, bricks: Mapping[str, BrickConfig]) -> list[ParameterInfo]:
    """Lists the parameters of bricks on a model.

    Raises:
      InputError: a name that is none, or a pattern that covers no site.
    """
    infos = []
    for name, config in bricks.items():
        check_name(name)
        for place, leaf, info in leaves(model, config):
            path = leaf_path(name, place, leaf)
            shape, axes = info.shape, info.axes
            template = f"brick.{name}.{place.site.name}.{leaf}"
            if place.layers:
                shape, axes = (len(place.layers), *shape), ("layer", *axes)
                template = f"brick.{name}.layer.{{layer}}.{place.site.name}.{leaf}"
            layers = tuple(place.first_layer + layer for layer in place.layers)
            infos.append(
                ParameterInfo(
                    path,
                    shape,
                    axes,
                    template,
                    layers=layers,
                    dtype=info.dtype,
                    trained=info.trained,
                )
            )
    return infos


def initial_bricks(
    model: ModelConfig, bricks: Mapping[str, BrickConfig], key: jax.Array
) -> dict[str, Array]:
    """Returns the values of bricks before training, by path.

    A value depends on the key, the brick's name, the site, the layer and the array's name: not on
    what else is attached, nor on how layers are segmented.
    """
    values = {}
    for name, config in bricks.items():
        for place, leaf, info in leaves(model, config):
            label = zlib.crc32(f"{name}/{place.site.name}/{leaf}".encode())
            own = jax.random.fold_in(key, label)
            layers = [place.first_layer + layer for layer in place.layers]
            drawn = [info.initial(jax.random.fold_in(own, layer), info.shape) for layer in layers]
            values[leaf_path(name, place, leaf)] = (
                jnp.stack(drawn) if layers else info.initial(own, info.shape)
            )
    return values


def large_ranks(model: ModelConfig, bricks: Mapping[str, BrickConfig]) -> list[str]:
    """Lists bricks whose rank is above a width of their site, a line each: a waste, no mistake."""
    lines = []
    for name, config in bricks.items():
        if not isinstance(config.settings, LoRA | DoRA):
            continue
        rank = config.settings.rank
        widths = {
            place.addresses[0]: min(place.site.input_width, place.site.output_width)
            for place in attachments(model, config)
        }
        if above := {address: width for address, width in widths.items() if rank > width}:
            address, width = min(above.items(), key=lambda item: item[1])
            lines.append(
                f"brick {name} has a rank of {rank} at {address}, where {width} can do as much"
            )
    return lines


def leaf_path(name: str, place: Attachment, leaf: str) -> str:
    """Returns the path of a brick's array."""
    return f"{BRICKS}.{name}.{place.path}.{leaf}"


def leaves(model: ModelConfig, config: BrickConfig) -> Iterator[tuple[Attachment, str, LeafInfo]]:
    """Yields every array of a brick on a model: its place, name and declaration."""
    for place in attachments(model, config):
        for leaf, info in config.settings.leaves(place.site).items():
            yield place, leaf, info
