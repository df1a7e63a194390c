"""A decoder with customized bricks as pure functions of flat parameters."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping

from modbrick.bricks.config import BrickConfig
from modbrick.bricks.plugging import plugged, with_dropout
from modbrick.bricks.table import BRICKS, brick_infos
from modbrick.config import ModelConfig
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import FunctionalDecoder, functional_decoder
from modbrick.execution import ExecutionConfig
from modbrick.parameters import Parameters, ParameterTable


@dataclasses.dataclass(frozen=True)
class PluggedDecoder:
    """The pure form of a decoder with bricks: parameters of both in one table.

    Attributes:
      config: the model.
      bricks: by name.
      decoder: the pure form of the model alone.
      table: parameters of the model, and of the bricks.
    """

    config: ModelConfig
    bricks: Mapping[str, BrickConfig]
    decoder: FunctionalDecoder
    table: ParameterTable

    def bind(self, parameters: Parameters, *, training: bool = False) -> Decoder:
        """Returns the model with these parameters and its bricks plugged in.

        Args:
          parameters: of both, by path.
          training: whether bricks drop what their settings say, in calls with random keys.
        """
        own = {p: x for p, x in parameters.items() if not is_brick(p)}
        model = self.decoder.bind(own)
        if not self.bricks:
            return model
        found = plugged(self.config, self.bricks, parameters)
        return model.plug(with_dropout(found, self.bricks) if training else found)


def plugged_decoder(
    config: ModelConfig,
    bricks: Mapping[str, BrickConfig],
    execution: ExecutionConfig = ExecutionConfig(),
) -> PluggedDecoder:
    """Returns the pure form of a decoder with bricks, or with none.

    Raises:
      InputError: a brick that does not fit the model.
    """
    return _plugged_decoder(config, tuple(bricks.items()), execution)


@functools.lru_cache(maxsize=64)
def _plugged_decoder(
    config: ModelConfig, bricks: tuple[tuple[str, BrickConfig], ...], execution: ExecutionConfig
) -> PluggedDecoder:
    decoder, by_name = functional_decoder(config, execution), dict(bricks)
    table = ParameterTable([*decoder.table, *brick_infos(config, by_name)])
    return PluggedDecoder(config, types.MappingProxyType(by_name), decoder, table)


def is_brick(path: str) -> bool:
    """Returns whether a path is that of a customized brick's array."""
    return path.startswith(f"{BRICKS}.")
