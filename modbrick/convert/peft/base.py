"""Weights of the base, which adapters replace or refer to."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from modbrick.config import ModelConfig
from modbrick.convert.correspondence import correspondence
from modbrick.convert.format import Format
from modbrick.convert.peft.module import Module
from modbrick.errors import InputError

Weights = Callable[[str], ArrayLike]
"""Returns a parameter of a model by its path, as `modbrick.decoder.functional` has it."""


class Base:
    """Tensors of the base under the names and in the layout of the transformers library.

    A parameter is read when one of its tensors is asked for, and kept: stacked over layers as it
    is, others will be.
    """

    def __init__(self, form: Format, model: ModelConfig, weights: Weights | None):
        self._table = correspondence(form, model)
        self._weights = weights
        self._read: dict[str, np.ndarray] = {}

    @property
    def known(self) -> bool:
        """Whether somebody has given the weights."""
        return self._weights is not None

    def stored(self, name: str) -> Shaped[np.ndarray, "..."]:
        """Returns a tensor in the dtype of the base.

        Args:
          name: such as `model.layers.3.self_attn.q_proj.weight`.

        Raises:
          InputError: nobody has given the weights.
        """
        place = self._table.places[self._table.aliases.get(name, name)]
        return place.theirs([self._parameter(part.path, name)[part.index] for part in place.parts])

    def tensor(self, name: str) -> Float[np.ndarray, "..."]:
        """Returns a tensor in float32."""
        return self.stored(name).astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, without reading it."""
        return self._table.places[name].shape

    def has(self, name: str, copy: Float[np.ndarray, "..."]) -> bool:
        """Returns whether a copy is that of a tensor, if need be rounded to another dtype."""
        own = self.stored(name)
        dtypes = (np.float32, np.float16, jnp.bfloat16)
        return any(np.array_equal(own.astype(dtype).astype(np.float32), copy) for dtype in dtypes)

    def norms(self, module: Module) -> Float[np.ndarray, "O"]:
        """Returns the norm of what makes each output of a linear map, in float32."""
        return np.linalg.norm(self.tensor(f"{module.name}.weight"), axis=1)

    def biases(self) -> list[str]:
        """Lists the names of all biases that it has."""
        return [name for name in self._table.places if name.endswith(".bias")]

    def _parameter(self, path: str, name: str) -> np.ndarray:
        if self._weights is None:
            raise InputError(
                f"the weights of the base are needed, for {name}: name its model (--model=)"
            )
        if path not in self._read:
            self._read[path] = np.asarray(self._weights(path))
        return self._read[path]
