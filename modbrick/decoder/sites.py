"""The sites of a model: where bricks plug in and values are captured, with their widths."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from modbrick.config import ModelConfig
from modbrick.decoder.functional import functional_decoder

Hook = Literal["outputs"]
"""What a brick at a site gets hold of: `outputs` of a map, which it changes token by token."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A place to attach: its name within the layer or the decoder, and the widths of both sides.

    `slots` is how many outputs a token has there, those of its experts.

    A projection has one of its own (`attention.query`, ...). `feed_forward.hidden` is what
    `feed_forward.down` reads, on both sides. `attention` and `feed_forward` see a sublayer whole
    (where an adapter sits), `residual` the stream after the layer, `*.router` the router's logits,
    `embedding` and `head` what the decoder makes of tokens and of final hidden states. With
    attention experts, `attention.query` hands a brick the layer's input and every slot's queries,
    `attention.output` the gate-weighted sum of the slots and the combined output; with feed-forward
    experts `feed_forward.up` and the other sites inside do likewise.
    """

    name: str
    input_width: int
    output_width: int
    slots: int = 1
    hook: Hook = "outputs"


@dataclasses.dataclass(frozen=True)
class ModelSites:
    """The sites of a model.

    Attributes:
      layers: of a layer of each segment, by the segment's index as text; sorted by name.
      decoder: `embedding` and `head`.
    """

    layers: dict[str, tuple[Site, ...]]
    decoder: tuple[Site, ...]


@functools.lru_cache(maxsize=64)
def model_sites(config: ModelConfig) -> ModelSites:
    """Lists the sites of a model, by tracing one abstract token through it.

    What the layers call `Context.at` with is what there is: no list is kept beside the code.
    """
    decoder = functional_decoder(config)

    def trace(parameters: dict[str, jax.Array]) -> Any:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return decoder.bind(parameters)(tokens, capture=("sites",)).captured["sites"]

    found = jax.eval_shape(trace, decoder.abstract_parameters())
    sites = {
        place: tuple(
            Site(
                name,
                # Token ids stand for rows of a one-hot matrix.
                config.vocabulary if inputs.ndim == 2 else inputs.shape[-1],
                outputs.shape[-1],
                math.prod(outputs.shape[2:-1]),
            )
            for name, (inputs, outputs) in at.items()
        )
        for place, at in found.items()
    }
    return ModelSites(sites, sites.pop("decoder"))
