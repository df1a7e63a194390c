"""The sites of a model: where bricks plug in and values are captured, with their widths."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from modbrick.config import ModelConfig
from modbrick.decoder.functional import functional_decoder
from modbrick.layers.context import Hook, SeenSite


@dataclasses.dataclass(frozen=True)
class Site:
    """A place to attach: its name within the layer or the decoder, and the widths of both sides.

    `slots` is how many outputs a token has there, those of its experts; `experts` how many the bank
    in front of it has, 0: there is none; `linear`, whether a linear map leads from one side to the
    other; `shape`, of weights, which have the width of their last axis on both sides.

    A projection has one of its own (`attention.query`, ...). `feed_forward.hidden` is what
    `feed_forward.down` reads, on both sides. `attention` and `feed_forward` see a sublayer whole
    (where an adapter sits), `residual` the stream after the layer, `*.router` the router's logits,
    `embedding` and `head` what the decoder makes of tokens and of final hidden states.
    `attention_norm`, `attention.query_norm`, `norm` and the like are norms: normalised values on
    one side, scaled ones on the other. `attention.query.weight` and the other parameters of a layer
    are sites of weights. With
    attention experts, `attention.query` hands a brick the layer's input and every slot's queries,
    `attention.output` the gate-weighted sum of the slots and the combined output; with feed-forward
    experts `feed_forward.up` and the other sites inside do likewise. At `attention.memory` widths
    are those of all key heads together, at `prompt` that of an embedding.

    `length` is how many tokens the model is meant for, at `prompt`, where they can be counted.
    """

    name: str
    input_width: int
    output_width: int
    slots: int = 1
    hook: Hook = "outputs"
    experts: int = 0
    linear: bool = False
    shape: tuple[int, ...] = ()
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelSites:
    """The sites of a model.

    Attributes:
      layers: of a layer of each segment, by the segment's index as text; sorted by name.
      decoder: `embedding`, `features`, `prompt`, `norm` and `head`.
    """

    layers: dict[str, tuple[Site, ...]]
    decoder: tuple[Site, ...]


@functools.lru_cache(maxsize=64)
def model_sites(config: ModelConfig) -> ModelSites:
    """Lists the sites of a model, by tracing one abstract token through it.

    What the layers call the context with is what there is: no list is kept beside the code.
    """
    decoder = functional_decoder(config)

    def trace(parameters: dict[str, jax.Array]) -> Any:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return decoder.bind(parameters)(tokens, capture=("sites",)).captured["sites"]

    places = jax.eval_shape(trace, decoder.table.abstract())
    sites = {
        place: tuple(_site(name, seen, config) for name, seen in at.items())
        for place, at in places.items()
    }
    return ModelSites(sites, sites.pop("decoder"))


def _site(name: str, seen: SeenSite, config: ModelConfig) -> Site:
    inputs, (*outer, out) = seen.inputs.shape, seen.outputs.shape
    # Token ids stand for rows of a one-hot matrix.
    width = config.vocabulary if len(inputs) == 2 else inputs[-1]
    if seen.hook == "prompt":
        return Site(name, out, out, hook=seen.hook, length=config.context)
    if seen.hook == "weights":  # behind the axes of layers, batch and sequence
        return Site(name, out, out, hook=seen.hook, shape=(*outer[3:], out))
    return Site(name, width, out, math.prod(outer[2:]), seen.hook, seen.experts, seen.linear)
