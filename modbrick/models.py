"""Models with their weights, from a directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from modbrick.checkpoints import load_parameters
from modbrick.checkpoints.directory import CHECKPOINTS, as_path, is_local
from modbrick.checkpoints.files import METADATA
from modbrick.config import ModelConfig
from modbrick.convert import open_checkpoint, read_parameters
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.layers.decoder import Decoder
from modbrick.layers.functional import functional_decoder
from modbrick.schema import differences, to_mapping

TRAINING_ONLY = (
    "context",
    "dtype",
    "router_statistics",
    "initial_scale",
    "expert_initialiser",
    "sample_top_k",
)
"""Fields that a run may choose for itself without making another model of the same weights."""


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

    Examples:
        >>> import jax.numpy as jnp
        >>> import modbrick
        >>> model = modbrick.load_model("run")
        >>> output = model(jnp.asarray([[1, 2, 3]]), capture=["routing"])
        >>> output.logits.shape  # [B, S, V]
        (1, 3, 256)
        >>> sorted(output.router_statistics)
        ['segments.0.attention', 'segments.0.feed_forward']
    """
    parameters, description = load_parameters(directory, step, dtype=dtype, shardings=shardings)
    config = description.metadata.model
    if dtype is not None:
        config = config.replace(dtype=dtype)
    return functional_decoder(config, execution).bind(parameters)


def initial_weights(
    source: epath.PathLike,
    config: ModelConfig,
    *,
    shardings: jax.sharding.Sharding | Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], str]:
    """Loads the parameters that a run starts from, float32, whatever is stored.

    Foreign checkpoints (see `modbrick.convert`) are read in place, without a second copy on disk.

    Args:
      source: a run's or model's directory, a single checkpoint, or a foreign checkpoint.
      config: the model of the run, which the parameters must fit.
      shardings: one for all, or by path; None: the first device. Of a foreign
        checkpoint each device reads its share only.

    Returns:
      The parameters by path, and what they are, in words.

    Raises:
      InputError: there is nothing to load, it is damaged, or it is another model.
    """
    if not _is_foreign(as_path(source)):
        parameters, description = load_parameters(
            source, config=config, dtype="float32", shardings=shardings
        )
        return parameters, f"{source}, step {description.step}"
    checkpoint = open_checkpoint(source)
    ours, theirs = (_computed(to_mapping(model)) for model in (config, checkpoint.model))
    if changed := differences(theirs, ours):
        raise InputError(
            f"{source} is another model than the config's: {'; '.join(changed)} "
            "(modbrick.convert.open_checkpoint(PATH).model is its config)"
        )
    parameters = read_parameters(checkpoint, dtype="float32", shardings=shardings)
    return parameters, f"{source}, a checkpoint of the format {checkpoint.form.name}"


def _is_foreign(path: epath.Path) -> bool:
    """Whether a path is a source of an import: a run's directory has a `config.json` too."""
    if not is_local(path) or (path / CHECKPOINTS).is_dir() or (path / METADATA).is_dir():
        return False
    return path.is_file() or (path / "config.json").is_file()


def _computed(record: Any) -> Any:
    """Returns plain data without the fields that do not change what a model computes."""
    if isinstance(record, Mapping):
        return {k: _computed(v) for k, v in record.items() if k not in TRAINING_ONLY}
    return [_computed(v) for v in record] if isinstance(record, list) else record
