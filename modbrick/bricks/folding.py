"""Folding: bricks become part of the weights, and cost nothing any more."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from modbrick.bricks.attachment import Attachment, attachments
from modbrick.bricks.brick import Brick
from modbrick.bricks.kinds.linear import LinearMap, Reader
from modbrick.config import ModelConfig
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.parameters import ParameterTable


def folded(
    model: ModelConfig, parameters: Mapping[str, ArrayLike], bricks: Mapping[str, Brick]
) -> dict[str, np.ndarray]:
    """Returns the parameters that change when bricks are folded into them, by path.

    The model with these computes what it computed with the bricks plugged in, but for rounding:
    sums are taken in float64 and rounded once, to the dtype that a parameter has.

    Args:
      model: the model.
      parameters: its weights, by path.
      bricks: by name; all apply, in their order.

    Raises:
      InputError: a brick does not fit the model; or it cannot be folded, as an adapter cannot, or
        not at one of its sites.
    """
    table, steps = parameter_table(model), []
    for number, (name, brick) in enumerate(bricks.items()):
        _ = brick.parameters(name, model)  # says what does not fit
        for place in attachments(model, brick.config):
            # As they are plugged in: weights change first; kinds in the order of their forms.
            order = (place.site.hook != "weights", repr(brick.config.settings.form), number)
            steps.append((order, name, brick, place))
    arrays: dict[str, np.ndarray] = {}
    originals: dict[str, np.ndarray] = {}
    for _, name, brick, place in sorted(steps, key=lambda step: step[0]):
        for layer in place.layers or (None,):
            address = place.address(layer)
            leaves = {
                leaf: brick.values[f"{address}.{leaf}"].astype(np.float64)
                for leaf in brick.config.settings.leaves(place.site)
            }
            linear = _Linear(model, table, place, layer, parameters, arrays, originals)
            try:
                linear.write(brick.config.settings.folded(leaves, linear.read()))
            except InputError as error:
                raise InputError(f"brick {name} cannot be folded: {error}") from error
    return {
        path: array.astype(np.asarray(parameters[path]).dtype) for path, array in arrays.items()
    }


class _Linear:
    """The linear map of a site among the parameters, read from and written to `arrays`."""

    def __init__(
        self,
        model: ModelConfig,
        table: ParameterTable,
        place: Attachment,
        layer: int | None,
        parameters: Mapping[str, ArrayLike],
        arrays: dict[str, np.ndarray],
        originals: dict[str, np.ndarray],
    ):
        self._address, self._layer = place.address(layer), layer
        self._parameters, self._arrays, self._originals = parameters, arrays, originals
        self._hook = place.site.hook
        where = f"segments.{place.segment}.{place.site.name}" if place.segment else place.site.name
        self._reader = where.endswith(".hidden")
        self._factor = 1.0
        if place.site.hook == "weights":
            self._weight, self._bias = where, ""
        elif place.site.hook == "norm":
            self._weight, self._bias = f"{where}.scale", f"{where}.bias"
        elif place.site.name == "embedding":
            self._weight, self._bias = "embedding", ""
            self._factor = model.embedding_multiplier
        else:
            where = where.removesuffix("hidden") + "down" if self._reader else where
            # A bank of outputs adds the bias behind the sum of its experts, before the site.
            behind = place.site.name == "attention.output" and f"{where}.bias" not in table
            self._weight, self._bias = f"{where}.weight", f"{where}{'_' if behind else '.'}bias"
            self._factor = model.logit_multiplier if place.site.name == "head" else 1.0
        tied = model.tied_head and place.site.name in ("embedding", "head")
        self._foldable = self._weight in table and not tied
        if self._bias not in table:
            self._bias = ""

    def read(self) -> LinearMap:
        """Returns the map; what the model multiplies its outputs by is part of it."""
        if not self._foldable:
            raise InputError(f"{self._address} has no weight of its own")
        weight = self._part(self._weight) * self._factor
        if self._reader:
            return Reader(self._address, weight.swapaxes(-1, -2))
        bias = self._part(self._bias) if self._bias else None
        if self._hook != "outputs":
            return LinearMap(self._address, weight, bias)
        original = self._originals.setdefault(self._address, weight.copy())
        return LinearMap(self._address, weight, bias, original)

    def write(self, linear: LinearMap) -> None:
        weight = linear.weight.swapaxes(-1, -2) if self._reader else linear.weight
        self._part(self._weight)[...] = weight / self._factor
        if linear.bias is not None:
            self._part(self._bias)[...] = linear.bias

    def _part(self, path: str) -> np.ndarray:
        """Returns a view of a parameter in float64, of the layer at hand."""
        if path not in self._arrays:
            self._arrays[path] = np.asarray(self._parameters[path]).astype(np.float64)
        array = self._arrays[path]
        return array if self._layer is None else array[self._layer]
