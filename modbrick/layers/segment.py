"""A segment: equal layers, stacked and scanned, so that 48 of them compile as one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.random import fold_in
from jaxtyping import Array, Float, Key

from modbrick.config import SegmentConfig
from modbrick.execution import ExecutionConfig
from modbrick.layers.block import Block, LayerRecord
from modbrick.layers.cache import SegmentCache
from modbrick.layers.parameters import Initialiser
from modbrick.layers.rematerialisation import mark_layer_input, rematerialised
from modbrick.layers.sites import SiteBricks
from modbrick.layers.stream import Stream


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
    x: Float[Array, "B S D"],
    stream: Stream,
    bricks: SiteBricks,
    execution: ExecutionConfig,
    *,
    first_layer: int,
    keys: Key[Array, "B"] | None,
    cache: SegmentCache | None,
    capture: frozenset[str],
) -> tuple[Float[Array, "B S D"], SegmentCache | None, LayerRecord]:
    """Runs the layers of a stacked block in order.

    Returns:
      The stream after the last layer, the updated cache, and the layers' records stacked on a
      leading axis.
    """
    graph, parameters = nnx.split(block)

    def run_layer(
        carry: tuple[Array, SegmentCache | None], inputs: tuple[Any, SiteBricks, Array]
    ) -> tuple[tuple[Array, SegmentCache | None], LayerRecord]:
        x, cache = mark_layer_input(carry[0]), carry[1]
        parameters, bricks, index = inputs
        of_layer = None if keys is None else jax.vmap(fold_in, (0, None))(keys, first_layer + index)
        layer = nnx.merge(graph, parameters)
        x, cache, record = layer(
            x, stream, bricks, execution, keys=of_layer, cache=cache, layer=index, capture=capture
        )
        return (x, cache), record

    (x, cache), records = jax.lax.scan(
        rematerialised(run_layer, execution.rematerialisation, execution.activation_memory),
        (x, cache),
        (nnx.as_pure(parameters), bricks, jnp.arange(config.repeats)),
        unroll=min(execution.unroll, config.repeats),
    )
    return x, cache, records
