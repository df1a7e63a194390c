"""Weights that were read from a checkpoint of this library are finite, unless it says otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from absl import logging

from modbrick.checkpoints import Description
from modbrick.errors import InputError, listed


def require_finite(
    parameters: dict[str, jax.Array], description: Description, origin: str
) -> dict[str, jax.Array]:
    """Returns the parameters, if they are finite or were imported with what is not.

    Args:
      parameters: by path, whole or over a mesh.
      description: of the checkpoint.
      origin: where it lies and what it is, for messages.

    Raises:
      InputError: others; names them.
    """
    floating = {p: x for p, x in parameters.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    together: dict[frozenset[jax.Device], dict[str, jax.Array]] = {}  # as one program needs them
    for path, values in floating.items():
        together.setdefault(frozenset(values.sharding.device_set), {})[path] = values
    found = {p: finite for group in together.values() for p, finite in _are_finite(group).items()}
    broken = [path for path in floating if not found[path]]
    if not broken:
        return parameters
    counts = [f"{int(jnp.sum(~jnp.isfinite(floating[path])))} in {path}" for path in broken]
    said = f"{origin}: weights are not finite: {listed(counts, '; ')}"
    if "not_finite" not in description.metadata.extra:
        raise InputError(f"{said} (name an earlier step, or another model)")
    logging.warning("%s", said)
    return parameters


@jax.jit
def _are_finite(parameters: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: jnp.isfinite(values).all() for path, values in parameters.items()}
