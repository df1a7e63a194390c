"""Prompts: embeddings in front of every document, which the model itself makes keys and values of.

They go through the layers once a call, for themselves and without bricks. What attention reads of
them then stands in front of the documents of those tokens that choose them, in every layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from modbrick.config import ModelConfig
from modbrick.decoder.arguments import visible
from modbrick.decoder.segment import run_segments
from modbrick.execution import ExecutionConfig
from modbrick.layers.attention import MEMORY
from modbrick.layers.block import Block
from modbrick.layers.cache import Cache, SegmentCache
from modbrick.layers.context import Bricks, Context
from modbrick.layers.memory import MemoryBrick
from modbrick.parallel import current_mesh
from modbrick.parallel.rules import ACTIVATION_RULES, mesh_axes_size

PROMPT = "prompt"
"""The decoder's site of prompts."""

Encode = Callable[[Float[Array, "N P D"], Int[Array, "N"]], Mapping[str, SegmentCache]]
"""Makes keys and values of embeddings and lengths of N prompts, by segment."""


class PromptBricks(Protocol):
    """Interface of bricks at `prompt`."""

    def encoded(self, encode: Encode) -> Mapping[str, MemoryBrick]:
        """Returns their keys and values by segment, stacked over its layers."""
        ...


def with_encoded_prompts(bricks: Bricks, encode: Encode) -> Bricks:
    """Returns bricks whose prompts are keys and values, farther than those that they have."""
    prompts: tuple[PromptBricks, ...] = bricks.decoder.get(PROMPT, ())
    if not prompts:
        return bricks
    segments = {name: dict(sites) for name, sites in bricks.segments.items()}
    for prompt in prompts:
        for name, memory in prompt.encoded(encode).items():
            sites = segments.setdefault(name, {})
            sites[MEMORY] = (*sites.get(MEMORY, ()), memory)
    decoder = {site: found for site, found in bricks.decoder.items() if site != PROMPT}
    return dataclasses.replace(bricks, segments=segments, decoder=decoder)


def keys_in_front(
    segments: Mapping[str, Block],
    config: ModelConfig,
    execution: ExecutionConfig,
    x: Float[Array, "N P D"],
    lengths: Int[Array, "N"],
) -> dict[str, SegmentCache]:
    """Runs rows whose last token stands at position -1 through a model's layers, without bricks.

    Args:
      segments: the layers.
      config: of the model.
      execution: how to run it.
      x: N rows, padded behind, as the first layer reads them.
      lengths: of the rows.

    Returns:
      Keys and values of each segment's layers, `[L, N, P, G, W]`.
    """
    rows, length, _ = x.shape
    x = _padded_to_mesh(x.astype(config.dtype))
    cache = Cache.empty(config, *x.shape[:2])
    place = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    lengths = jnp.pad(lengths.astype(jnp.int32), (0, len(x) - rows))[:, None]
    positions = place - lengths
    visibility, real, positions, _ = visible(place, positions < 0, None, positions, cache)
    context = Context(positions, visibility, real, execution=execution)
    *_, cached = run_segments(segments, config, x, context, Bricks(), cache)
    return jax.tree.map(lambda array: array[:, :rows, :length], cached)


def _padded_to_mesh(x: Float[Array, "N P D"]) -> Float[Array, "N P D"]:
    """Returns rows padded so that the mesh in force divides rows and positions."""
    mesh = current_mesh()
    if mesh is None:
        return x
    sizes = (mesh_axes_size(mesh, ACTIVATION_RULES[axis]) for axis in ("batch", "sequence"))
    missing = [-length % size for length, size in zip(x.shape, sizes, strict=False)]
    return jnp.pad(x, [*((0, count) for count in missing), (0, 0)])
