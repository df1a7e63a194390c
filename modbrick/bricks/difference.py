"""The difference of two models as a sparse brick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modbrick.bricks.attachment import attachments
from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.bricks.kinds.sparse import SparseDelta
from modbrick.config import ModelConfig
from modbrick.errors import InputError


def sparse_difference(
    model: ModelConfig,
    base: Mapping[str, Any],
    tuned: Mapping[str, Any],
    *,
    at: Sequence[str],
    density: float,
) -> Brick:
    """Returns the largest entries of what tuning changed in some weights.

    That is the last step of diff pruning, projection by magnitude (arXiv 2012.07463, section 3.2),
    here for each weight of each layer by itself; a density of 1 keeps everything.

    Args:
      model: config of both.
      base: parameters of the model, by path.
      tuned: those of the same model after it was changed.
      at: patterns of weights: `layer.*.attention.query.weight`, `layer.4-7`.
      density: share of the entries of a weight that is kept.

    Raises:
      InputError: a pattern covers no weight, the density is none, or parameters are missing or of
        another shape.

    Examples:
        >>> import modbrick
        >>> from modbrick.bricks import sparse_difference
        >>> from modbrick.checkpoints import load_checkpoint
        >>> base, description = load_checkpoint("run")
        >>> tuned = {path: 1.5 * value for path, value in base.items()}
        >>> config = description.metadata.model
        >>> at = ["layer.*.attention_norm.scale"]
        >>> brick = sparse_difference(config, base, tuned, at=at, density=0.25)
        >>> brick.values["layer.0.attention_norm.scale.positions"].shape  # of 16
        (4,)
    """
    settings = SparseDelta(density)
    config = BrickConfig(tuple(at), settings)
    values = {}
    for place in attachments(model, config):
        count = settings.count(place.site)
        for which, parameters in (("base", base), ("tuned", tuned)):
            shape = tuple(np.shape(parameters.get(place.path, ())))
            if shape[1:] != place.site.shape:
                raise InputError(
                    f"{place.path} of the {which} model has shape {list(shape)}, the config needs "
                    f"{place.site.shape} in each layer"
                )
        before, after = (np.asarray(of[place.path], np.float32) for of in (base, tuned))
        for layer in place.layers:
            change = (after[layer] - before[layer]).reshape(-1)
            largest = np.argpartition(np.abs(change), len(change) - count)[-count:]
            positions = np.sort(largest).astype(np.int32)
            address = place.address(layer)
            values[f"{address}.positions"] = positions
            values[f"{address}.values"] = change[positions]
    return Brick(config, values)
