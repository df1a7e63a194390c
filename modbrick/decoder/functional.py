"""A decoder as pure functions of flat parameters, without initialising any."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from modbrick.config import ModelConfig
from modbrick.decoder.decoder import Decoder
from modbrick.execution import ExecutionConfig
from modbrick.parameters import ParameterInfo, Parameters, ParameterTable, flatten, nest


@dataclasses.dataclass(frozen=True)
class FunctionalDecoder:
    """The static part of a decoder, and the table of its parameters.

    Attributes:
      graph: of the module, with its config and how it is run.
      table: its parameters, with shapes, axes and addresses.
    """

    graph: nnx.GraphDef[Decoder]
    table: ParameterTable

    def bind(self, parameters: Parameters) -> Decoder:
        """Returns the module with these parameters; inside a pure function it costs nothing."""
        return nnx.merge(self.graph, nest(parameters))


@functools.lru_cache(maxsize=64)
def functional_decoder(
    config: ModelConfig, execution: ExecutionConfig = ExecutionConfig()
) -> FunctionalDecoder:
    """Returns the pure form of a decoder; the only place where one is built abstractly."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, execution=execution)))
    return FunctionalDecoder(graph, ParameterTable(_infos(config, state)))


def parameter_table(config: ModelConfig) -> ParameterTable:
    """Lists the parameters of a model, with shapes, axes and addresses.

    Examples:
        >>> import modbrick
        >>> config = modbrick.families.dense(
        ...     vocabulary=32, width=8, layers=2, heads=2, feed_forward_width=16
        ... )
        >>> table = modbrick.parameter_table(config)
        >>> table["segments.0.feed_forward.up.weight"].shape
        (2, 8, 16)
        >>> sorted(table.select(["layer.1.feed_forward"]))
        ['segments.0.feed_forward.down.weight', 'segments.0.feed_forward.up.weight']
    """
    return functional_decoder(config).table


def initial_parameters(
    config: ModelConfig, key: jax.Array, shardings: Any | None = None
) -> dict[str, Array]:
    """Returns a new model's parameters, float32; compiled, so that none exists twice.

    Args:
      config: the model.
      key: of the random values, which do not depend on the shardings.
      shardings: by path; None: the default device.
    """

    def build(key: jax.Array) -> dict[str, Array]:
        return parameters_of(Decoder(config, key=key))

    # Runs once: on CPU the compiler's full effort took 11 s of processor time for it, this 2 s.
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(build, out_shardings=shardings, compiler_options=options)(key)


def parameters_of(model: Decoder) -> dict[str, Array]:
    """Returns the parameters of a module, flat."""
    return flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def _infos(config: ModelConfig, state: nnx.State) -> list[ParameterInfo]:
    first_layers = {name: first for name, first, _ in config.placed_segments()}
    infos = []
    for parts, variable in nnx.to_flat_state(state):
        path = ".".join(map(str, parts))
        shape, axes, role = tuple(variable.shape), tuple(variable.axes), variable.role
        if parts[0] == "segments":
            # The layers of a segment are stacked after each has declared its own axes.
            axes, first_layer = ("layer", *axes), first_layers[str(parts[1])]
            infos.append(ParameterInfo.of_segment(path, shape, axes, first_layer, role))
        else:
            infos.append(ParameterInfo(path, shape, axes, role=role))
    return infos
