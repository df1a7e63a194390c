"""Dtypes as Python programs name them: a string, of torch too, or a type of numpy, jax or torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modbrick.errors import InputError

FLOATS = ("float32", "bfloat16", "float16", "float64")


def dtype_name(value: Any, where: str = "dtype", known: Sequence[str] = FLOATS) -> str:
    """Returns the name of a dtype, such as `bfloat16`.

    Args:
      value: `"bfloat16"`, `"torch.bfloat16"`, `torch.bfloat16`, `jnp.bfloat16` or a `np.dtype`.
      where: it stands, for the message.
      known: names that are taken.

    Raises:
      InputError: another one, or no dtype at all.
    """
    name = str(value).removeprefix("torch.")
    if value is not None and not isinstance(value, str) and name == str(value):
        try:
            name = np.dtype(value).name
        except TypeError:
            name = repr(value)
    if name not in known:
        raise InputError(f"{where} must be {' or '.join(known)}, got {name}")
    return name
