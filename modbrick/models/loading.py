"""Models with their weights, and parameters alone, from a directory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import jax
from etils import epath

from modbrick.checkpoints.loading import Dtypes
from modbrick.config import ModelConfig
from modbrick.decoder.decoder import Decoder
from modbrick.execution import ExecutionConfig
from modbrick.models.stored import Shardings, open_model


def load_model(
    path: epath.PathLike,
    step: int | None = None,
    *,
    bricks: Sequence[epath.PathLike] = (),
    allow_base: str = "same",
    base: epath.PathLike | None = None,
    dtype: str | None = None,
    execution: ExecutionConfig = ExecutionConfig(),
    shardings: Shardings = None,
) -> Decoder:
    """Loads a model with its weights, and customized bricks plugged in.

    Calling it with token ids `[B, S]` returns logits `[B, S, V]` and more, see `Decoder`.

    Args:
      path: as for `open_model`.
      step: as for `open_model`.
      bricks: files of bricks, see `modbrick.library`; all apply, in their order.
      allow_base: on which weights these may have been trained: `same`, those of the model, or
        `any` of the same shapes.
      base: as for `open_model`.
      dtype: of the computation and of the weights in memory (`float32`, `bfloat16`); None: the
        computation is as the model's config says, the weights as stored.
      execution: how to run it.
      shardings: of the weights, one for all, or by path; None: the first device.

    Raises:
      InputError: there is no model, it is damaged, does not fit its own config, or has weights that
        are not finite (and was not imported with them); a brick does not fit, or two have one name.

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
    stored = open_model(path, step, base=base).with_bricks(bricks, allow_base=allow_base)
    return stored.load(dtype=dtype, execution=execution, shardings=shardings)


def load_parameters(
    path: epath.PathLike,
    step: int | None = None,
    *,
    config: ModelConfig | None = None,
    paths: Collection[str] | None = None,
    dtype: Dtypes = None,
    shardings: Shardings = None,
) -> dict[str, jax.Array]:
    """Loads a model's parameters, or some of them, by path; of a run of bricks, these alone.

    Args:
      path: as for `open_model`.
      step: as for `open_model`.
      config: the model that they must fit; None: their own.
      paths: of the parameters to read; None: all.
      dtype: one for all, or by path; None: each as stored.
      shardings: one for all, or by path; None: the first device. Each device reads its share only.

    Returns:
      The parameters `segments.0.feed_forward.up.weight` and so on, stacked over layers and experts.

    Raises:
      InputError: as `load_model`; a path that the model does not have; or it is another model.

    Examples:
        >>> import modbrick
        >>> parameters = modbrick.load_parameters("run", paths=["embedding"])
        >>> parameters["embedding"].shape
        (256, 16)
        >>> len(modbrick.load_parameters("their_llama", dtype="bfloat16")) > 10
        True
    """
    stored = open_model(path, step)
    return stored.read(config=config, paths=paths, dtype=dtype, shardings=shardings)
