"""Steering: a brick that nobody trains, measured from prompts that differ in what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from modbrick.bricks.attachment import Attachment, attachments
from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.bricks.kinds.bias import Bias
from modbrick.decoder.arguments import check_values
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.schema import convert

Prompts = Sequence[Sequence[int]]
"""Token ids of each prompt."""
Tokens = Literal["last", "all"]


def steering_brick(
    model: Decoder,
    towards: Prompts,
    away: Prompts = (),
    *,
    at: Sequence[str] = ("layer.*.residual",),
    strength: float = 1.0,
    tokens: Tokens = "last",
) -> Brick:
    """Returns the difference of what a model has at some sites for two kinds of prompts.

    Plugged in, it adds `strength` times the difference of the means to every token there
    (arXiv 2308.10248, section 3). Without prompts to be led away from it is the mean itself: of
    prompts that show a task, at their last token, a task vector (arXiv 2310.15213, section 2).

    Args:
      model: the model.
      towards: prompts that have what is wanted.
      away: prompts that lack it.
      at: patterns of sites, such as `layer.5.residual`.
      strength: by which the vector is multiplied where it is added; may be negative.
      tokens: whose values are averaged: the last of each prompt, or all of them, each prompt alike.

    Raises:
      InputError: no prompt, an empty one or one of unknown tokens; or a pattern of no site.

    Examples:
        >>> import modbrick
        >>> from modbrick.bricks.steering import steering_brick
        >>> model = modbrick.load_model("run")
        >>> at = ["layer.0.residual"]
        >>> brick = steering_brick(model, towards=[[1, 2, 3]], away=[[4, 5]], at=at)
        >>> brick.values["layer.0.residual.bias"].shape
        (16,)
    """
    convert(Tokens, tokens, "tokens")
    config = BrickConfig(tuple(at), Bias(strength))
    places = attachments(model.config, config)
    for place in places:
        if place.site.slots > 1:
            raise InputError(f"{place.site.name} has {place.site.slots} outputs a token: no mean")
    if not towards:
        raise InputError("steering needs prompts that have what is wanted: there is none")
    mean = _means(model, towards, places, tokens)
    if away:
        other = _means(model, away, places, tokens)
        mean = {address: value - other[address] for address, value in mean.items()}
    return Brick(config, {f"{address}.bias": value for address, value in mean.items()})


def _means(
    model: Decoder, prompts: Prompts, places: Sequence[Attachment], tokens: str
) -> dict[str, np.ndarray]:
    """Returns the mean over prompts of the outputs of sites, float32 `[width]`, by address."""
    longest, names = max(map(len, prompts)), tuple({place.site.name for place in places})
    graph, parameters = nnx.split(model)

    @jax.jit
    def captured(parameters: nnx.State, row: Array, mask: Array) -> dict[str, Array]:
        model = nnx.merge(graph, parameters)
        found = model(row, attention_mask=mask, capture=names).captured
        weights = mask[0] / mask.sum()
        if tokens == "last":
            weights = jnp.arange(longest) == mask.sum() - 1
        return {
            place.path: _mean(found[place.site.name], place.segment, weights) for place in places
        }

    totals: dict[str, np.ndarray] = {}
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty")
        check_values(jnp.asarray(prompt), model.config.vocabulary, None)
        row = np.zeros((1, longest), np.int32)
        row[0, : len(prompt)] = prompt
        values = captured(parameters, row, np.arange(longest)[None] < len(prompt))
        for place in places:
            whole = np.asarray(values[place.path], np.float64) / len(prompts)
            for layer in place.layers or (None,):
                value = whole if layer is None else whole[layer]
                address = place.address(layer)
                totals[address] = totals.get(address, 0.0) + value
    return {address: value.astype(np.float32) for address, value in totals.items()}


def _mean(
    outputs: Array | dict[str, Array], segment: str, weights: Float[Array, "S"]
) -> Float[Array, "*L W"]:
    """Returns the mean over the tokens of one row of a site's outputs `[L, 1, S, W]`."""
    if isinstance(outputs, dict):
        outputs = outputs[segment]
    outputs = outputs[..., 0, :, :].astype(jnp.float32)
    return (outputs * weights[:, None]).sum(-2)
