"""Values of an opened checkpoint onto devices, of whatever mesh."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.convert.finite import NotFinite
from modbrick.convert.opening import OpenedSource
from modbrick.dtypes import dtype_name
from modbrick.errors import InputError


def read_onto_devices(
    checkpoint: OpenedSource,
    paths: Collection[str],
    dtypes: Mapping[str, jax.typing.DTypeLike | None],
    shardings: jax.sharding.Sharding | Mapping[str, Any] | None,
) -> dict[str, jax.Array]:
    """Reads parameters onto devices, each device's share only, slice by slice.

    Args:
      checkpoint: opened.
      paths: of the parameters.
      dtypes: by path; None: as stored.
      shardings: one for all, or by path; None: the first device.

    Raises:
      InputError: values that are not finite; names them.
    """
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    broken = NotFinite(checkpoint)
    parameters: dict[str, jax.Array] = {}
    for path in paths:
        shape = checkpoint.correspondence.parameters[path].shape
        chosen = dtypes.get(path)
        dtype = checkpoint.dtype(path) if chosen is None else jnp.dtype(dtype_name(chosen))

        def read(
            index: tuple[slice, ...] | None, path: str = path, dtype: Any = dtype
        ) -> np.ndarray:
            assert index is not None, "None stands for all of an array without shape"
            values = checkpoint.read(path, index, dtype=dtype)
            if not np.isfinite(values).all():
                broken.add(path, index, values)
            return values

        sharding = shardings[path] if isinstance(shardings, Mapping) else shardings or default
        parameters[path] = jax.make_array_from_callback(shape, sharding, read, dtype=dtype)
    if broken:
        raise InputError(broken.complaint())
    return parameters
