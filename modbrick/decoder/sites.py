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

Hook = Literal["outputs", "memory", "prompt"]
"""What a brick at a site gets hold of.

`outputs` of a map, which it changes token by token; `memory`: keys and values in front of every
document; `prompt`: embeddings in front of every document.
"""


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
    experts `feed_forward.up` and the other sites inside do likewise. At `attention.memory` widths
    are those of all key heads together, at `prompt` that of an embedding.

    `length` is how many tokens the model is meant for, at `prompt`, where they can be counted.
    """

    name: str
    input_width: int
    output_width: int
    slots: int = 1
    hook: Hook = "outputs"
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelSites:
    """The sites of a model.

    Attributes:
      layers: of a layer of each segment, by the segment's index as text; sorted by name.
      decoder: `embedding`, `prompt` and `head`.
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

    places = jax.eval_shape(trace, decoder.abstract_parameters())
    sites = {
        place: tuple(
            Site(
                name,
                # Token ids stand for rows of a one-hot matrix.
                config.vocabulary if found.inputs.ndim == 2 else found.inputs.shape[-1],
                found.outputs.shape[-1],
                math.prod(found.outputs.shape[2:-1]),
                found.hook,
                config.context if found.hook == "prompt" else None,
            )
            for name, found in at.items()
        )
        for place, at in places.items()
    }
    return ModelSites(sites, sites.pop("decoder"))
