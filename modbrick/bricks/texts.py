"""Bricks of given tokens, made without training: a document, or where a prompt begins."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks.attachment import attachments
from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.bricks.kinds.prefix import Prefix
from modbrick.bricks.kinds.prompt import Prompt
from modbrick.decoder.arguments import check_values
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError


def document_brick(model: Decoder, tokens: Sequence[int]) -> Brick:
    """Returns a document as a prefix that serves many tasks: its keys and values in every layer.

    A question behind it gets the logits that it gets behind the document's tokens (as the plugins
    of arXiv 2305.17660, section 3, without their training). The model runs without its own bricks.

    Args:
      model: that reads it, now and later.
      tokens: of the document, with its start token if documents have one.

    Raises:
      InputError: no tokens, or ids beyond the vocabulary.
    """
    x = _embedded(model, tokens)

    def run(x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        cached = model.keys_and_values(x[None], jnp.array([len(x)]))
        return {name: (found.keys[:, 0], found.values[:, 0]) for name, found in cached.items()}

    found = jax.jit(run)(x)
    config = BrickConfig(("layer.*.attention.memory",), Prefix(length=len(tokens)))
    values = {}
    for place in attachments(model.config, config):
        for leaf, layers in zip(("keys", "values"), found[place.segment], strict=True):
            for layer, array in zip(place.layers, np.asarray(layers, np.float32), strict=True):
                values[f"{place.address(layer)}.{leaf}"] = array.reshape(len(tokens), -1)
    return Brick(config, values)


def prompt_brick(model: Decoder, tokens: Sequence[int]) -> Brick:
    """Returns a prompt that is the embeddings of tokens (arXiv 2104.08691, section 3.2).

    Args:
      model: whose embeddings they are.
      tokens: of the text.

    Raises:
      InputError: no tokens, more than the model's context, or ids beyond the vocabulary.
    """
    config = BrickConfig(("prompt",), Prompt(length=max(len(tokens), 1)))
    attachments(model.config, config)  # refuses what is too long
    embeddings = np.asarray(_embedded(model, tokens), np.float32)
    return Brick(config, {"prompt.embeddings": embeddings})


def _embedded(model: Decoder, tokens: Sequence[int]) -> jax.Array:
    """Returns what the first layer reads of tokens, `[P, D]`."""
    if not len(tokens):
        raise InputError("a brick of a text needs at least one token")
    ids = jnp.asarray(tokens, jnp.int32)[None]
    check_values(ids, model.config.vocabulary, None)
    return model.embed(ids)[0]
