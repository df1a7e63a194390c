"""Foreign checkpoints straight into memory or onto a mesh, without a second copy on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from modbrick.convert.opening import OpenedSource, open_checkpoint
from modbrick.execution import ExecutionConfig
from modbrick.layers.decoder import Decoder
from modbrick.layers.functional import functional_decoder

Shardings = jax.sharding.Sharding | Mapping[str, Any]


def read_parameters(
    checkpoint: OpenedSource,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    shardings: Shardings | None = None,
) -> dict[str, Any]:
    """Reads the parameters onto devices; each device's share only, slice by slice.

    Args:
      checkpoint: an opened source.
      dtype: of all parameters; None: each as its tensors are stored.
      shardings: one for all, or by path; None: the first device.

    Returns:
      The parameters by path.

    Raises:
      InputError: a file proves damaged in reading.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    by_path = shardings if isinstance(shardings, Mapping) else None
    parameters = {}
    for info in checkpoint.correspondence.parameters:
        sharding = (shardings or default) if by_path is None else by_path[info.path]
        assert isinstance(sharding, jax.sharding.Sharding)
        wanted = checkpoint.dtype(info.path) if dtype is None else jnp.dtype(dtype)

        def read(
            index: tuple[slice, ...] | None, path: str = info.path, wanted: jnp.dtype = wanted
        ) -> Any:
            return checkpoint.read(path, index, dtype=wanted)

        parameters[info.path] = jax.make_array_from_callback(
            info.shape, sharding, read, dtype=wanted
        )
    return parameters


def load(
    path: str | Path,
    *,
    dtype: str | None = None,
    execution: ExecutionConfig = ExecutionConfig(),
    shardings: Shardings | None = None,
) -> Decoder:
    """Returns the model of a foreign checkpoint, with its weights.

    Args:
      path: as for `open_checkpoint`.
      dtype: of the computation and of the weights in memory (`float32`, `bfloat16`); None: the
        computation is as the source's config says, the weights as stored.
      execution: how to run it.
      shardings: of the weights, one for all, or nested like them; None: the first device.

    Raises:
      InputError: as `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.model
    if dtype is not None:
        config = config.replace(dtype=dtype)
    parameters = read_parameters(checkpoint, dtype=dtype, shardings=shardings)
    return functional_decoder(config, execution).bind(parameters)
