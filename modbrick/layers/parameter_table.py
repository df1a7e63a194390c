"""Which parameters a model has."""

from __future__ import annotations

from flax import nnx

from modbrick.config import ModelConfig
from modbrick.layers.decoder import Decoder
from modbrick.parameters.addresses import AddressTable, ParameterInfo


def parameter_table(config: ModelConfig) -> AddressTable:
    """Lists the parameters of a model, with shapes and axes, without initialising any.

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
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config)))
    first_layers, first = {}, 0
    for index, segment in enumerate(config.segments):
        first_layers[str(index)] = first
        first += segment.repeats
    infos = []
    for path, variable in nnx.to_flat_state(state):
        stacked = path[0] == "segments"
        axes = ("layer", *variable.axes) if stacked else variable.axes
        first_layer = first_layers[str(path[1])] if stacked else 0
        name = ".".join(map(str, path))
        infos.append(ParameterInfo(name, tuple(variable.shape), tuple(axes), first_layer))
    return AddressTable(infos)
