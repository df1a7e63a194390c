"""A segment: equal layers, stacked and scanned, so that 48 of them compile as one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.random import fold_in
from jaxtyping import Array, Float

from modbrick.config import ModelConfig, SegmentConfig
from modbrick.layers.block import Block
from modbrick.layers.cache import Cache, SegmentCache
from modbrick.layers.context import Bricks, Context, SiteBricks
from modbrick.layers.parameters import Initialiser
from modbrick.layers.rematerialisation import mark_layer_input, rematerialised

Carry = tuple[Array, SegmentCache | None]


def stacked_block(
    config: SegmentConfig,
    first_layer: int,
    width: int,
    scale: float,
    expert_initialiser: Initialiser,
    key: jax.Array,
) -> Block:
    """Initialises a segment's layers as one block, whose parameters have a leading axis `layer`.

    A layer's initial values depend on its absolute index only, not on how layers are segmented.
    """
    build = functools.partial(Block, config.layer, width, scale, expert_initialiser)
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(params=0))))
    keys = jax.vmap(lambda index: fold_in(key, index))(first_layer + jnp.arange(config.repeats))
    stacked = jax.vmap(lambda key: nnx.state(build(rngs=nnx.Rngs(params=key))))(keys)
    return nnx.merge(graph, stacked)


def run_segment(
    block: Block,
    config: SegmentConfig,
    first_layer: int,
    x: Float[Array, "B S D"],
    context: Context,
) -> tuple[Float[Array, "B S D"], Context]:
    """Runs the layers of a stacked block in order.

    Args:
      block: the layers, stacked.
      config: of the segment.
      first_layer: absolute index of the first of them.
      x: the residual stream.
      context: with the segment's bricks, stacked over its layers, and its cache.

    Returns:
      The stream after the last layer, and the context with the updated cache and what the layers
      left behind, stacked on a leading axis.
    """
    graph, parameters = nnx.split(block)
    execution = context.execution

    def run_layer(
        carry: Carry, inputs: tuple[Any, SiteBricks, Array]
    ) -> tuple[Carry, tuple[dict[str, Any], dict[str, Any]]]:
        x, cache = mark_layer_input(carry[0]), carry[1]
        parameters, bricks, index = inputs
        of_layer = context.of_layer(index, first_layer, bricks, cache)
        x = nnx.merge(graph, of_layer.weights(parameters))(x, of_layer)
        return (x, of_layer.cache), (of_layer.statistics, of_layer.captured)

    (x, cache), (statistics, captured) = jax.lax.scan(
        rematerialised(run_layer, execution.rematerialisation, execution.activation_memory),
        (x, context.cache),
        (nnx.as_pure(parameters), context.bricks, jnp.arange(config.repeats)),
        unroll=min(execution.unroll, config.repeats),
    )
    return x, context.with_results(cache, statistics, captured)


def run_segments(
    blocks: Mapping[str, Block],
    config: ModelConfig,
    x: Float[Array, "B S D"],
    context: Context,
    bricks: Bricks,
    cache: Cache | None,
) -> tuple[Float[Array, "B S D"], dict[str, Context], dict[str, SegmentCache]]:
    """Runs all layers of a model.

    Args:
      blocks: the layers of each segment, stacked.
      config: of the model.
      x: the residual stream.
      context: of the tokens.
      bricks: attached to the layers.
      cache: of the tokens before these; None: none is kept.

    Returns:
      The stream after the last layer, the context of each segment, and the caches that are kept.
    """
    inner: dict[str, Context] = {}
    cached: dict[str, SegmentCache] = {}
    for name, first_layer, segment in config.placed_segments():
        of_segment = dataclasses.replace(
            context,
            bricks=bricks.segments.get(name, {}),
            cache=None if cache is None else cache.segments[name],
        )
        x, inner[name] = run_segment(blocks[name], segment, first_layer, x, of_segment)
        if (kept := inner[name].cache) is not None:
            cached[name] = kept
    return x, inner, cached
