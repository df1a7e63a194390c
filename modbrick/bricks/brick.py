"""A customized brick with its values, apart from any model that it is plugged into."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from modbrick.bricks.config import BrickConfig
from modbrick.bricks.kinds.kind import LeafInfo
from modbrick.bricks.table import leaf_path, leaves
from modbrick.config import ModelConfig
from modbrick.errors import InputError, listed


@dataclasses.dataclass(frozen=True)
class Brick:
    """Config and values of a brick.

    Values are by absolute address, one array a layer: `layer.3.attention.query.down`,
    `embedding.up`. How a model's layers are segmented makes no difference to them.

    Attributes:
      config: what it is, and where.
      values: arrays by address, without the brick's name.
    """

    config: BrickConfig
    values: Mapping[str, np.ndarray]

    @classmethod
    def of_parameters(
        cls, name: str, config: BrickConfig, model: ModelConfig, parameters: Mapping[str, Array]
    ) -> Brick:
        """Takes a brick out of the parameters of a model that it is plugged into, by path."""
        values = {}
        for place, leaf, _ in leaves(model, config):
            whole = np.asarray(parameters[leaf_path(name, place, leaf)])
            layers = whole if place.layers else whole[None]
            for address, value in zip(place.addresses, layers, strict=True):
                values[f"{address}.{leaf}"] = value
        return cls(config, values)

    def mismatches(self, model: ModelConfig) -> list[str]:
        """Lists what does not fit a model, a remark for each array and site by name."""
        try:
            wanted = dict(_wanted(model, self.config))
        except InputError as error:
            return [str(error)]
        remarks = [f"missing: {address}" for address in wanted if address not in self.values]
        remarks += [f"unexpected: {address}" for address in self.values if address not in wanted]
        for address, info in wanted.items():
            if address not in self.values:
                continue
            values = np.asarray(self.values[address])
            if values.shape != info.shape:
                have, want = values.shape, info.shape
                remarks.append(
                    f"{address}: the brick has {list(have)}, the model needs {list(want)}"
                )
            elif flaw := info.flaw(values):
                remarks.append(f"{address}: {flaw}")
        return remarks

    def parameters(self, name: str, model: ModelConfig) -> dict[str, Array]:
        """Returns the values as parameters of a model, by path under a name.

        Raises:
          InputError: it does not fit; lists every mismatch.
        """
        if remarks := self.mismatches(model):
            raise InputError(f"brick {name} does not fit the model: {listed(remarks, '; ')}")
        parameters = {}
        for place, leaf, _ in leaves(model, self.config):
            layers = [jnp.asarray(self.values[f"{address}.{leaf}"]) for address in place.addresses]
            path = leaf_path(name, place, leaf)
            parameters[path] = jnp.stack(layers) if place.layers else layers[0]
        return parameters


def _wanted(model: ModelConfig, config: BrickConfig) -> Iterator[tuple[str, LeafInfo]]:
    for place, leaf, info in leaves(model, config):
        for address in place.addresses:
            yield f"{address}.{leaf}", info
