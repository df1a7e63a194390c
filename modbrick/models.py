"""Models with their weights, from a directory."""

from __future__ import annotations

import jax
from etils import epath
from flax import nnx

from modbrick.checkpoints import load_parameters
from modbrick.execution import ExecutionConfig
from modbrick.layers.decoder import Decoder


def load_model(
    directory: epath.PathLike,
    step: int | None = None,
    *,
    dtype: str | None = None,
    execution: ExecutionConfig = ExecutionConfig(),
    shardings: jax.sharding.Sharding | None = None,
) -> Decoder:
    """Loads a model with its weights.

    Calling it with token ids `[B, S]` returns logits `[B, S, V]` and more, see `Decoder`.

    Args:
      directory: a run's or model's directory, its `checkpoints`, or a single checkpoint.
      step: which checkpoint; None: the newest complete one.
      dtype: of the computation and of the weights in memory (`float32`, `bfloat16`); None: the
        computation is as the model's config says, the weights as stored.
      execution: how to run it.
      shardings: of the weights, one for all; None: the first device.

    Raises:
      InputError: there is no such checkpoint, it is damaged, or does not fit its own config.
    """
    parameters, description = load_parameters(directory, step, dtype=dtype, shardings=shardings)
    config = description.metadata.model
    if dtype is not None:
        config = config.replace(dtype=dtype)
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, execution=execution)))
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(graph, state)
