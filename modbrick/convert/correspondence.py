"""Correspondence of tensors and values of a model: a format's rows, spelled out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from modbrick.config import LayerConfig, ModelConfig
from modbrick.convert.format import Format, Row
from modbrick.convert.transforms import Shape, Transform
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError, listed
from modbrick.formats.stored_tensor import StoredTensor
from modbrick.parameters import ParameterInfo, ParameterTable


@dataclasses.dataclass(frozen=True)
class Part:
    """Part of a tensor: a parameter here, one layer's share of it, or one expert's.

    Attributes:
      path: of the stored parameter, stacked over layers.
      index: of the layer in the stack and of the expert, as far as they are singled out.
      shape: of what is left of the parameter.
    """

    path: str
    index: tuple[int, ...]
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Place:
    """Place of parts of parameters: one tensor of a format, and what it holds.

    Attributes:
      name: of the tensor.
      parts: in the order in which they stand along `axis`.
      transform: of each.
      axis: of the tensor.
      layer: that it belongs to; None: to none.
      also: other names that the tensor may have in files.
    """

    name: str
    parts: tuple[Part, ...]
    transform: Transform
    axis: int
    layer: LayerConfig | None
    also: tuple[str, ...] = ()

    @property
    def shape(self) -> Shape:
        """Shape of the tensor.

        Raises:
          InputError: the parts do not fit together.
        """
        shapes = [self.transform.shape(part.shape) for part in self.parts]
        if len(shapes) == 1:
            return shapes[0]
        rest = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in shapes}
        if len(rest) > 1 or len({len(shape) for shape in shapes}) > 1:
            raise InputError(f"{self.name} cannot hold parts of shapes {shapes} one after another")
        total = sum(shape[self.axis] for shape in shapes)
        return (*shapes[0][: self.axis], total, *shapes[0][self.axis + 1 :])

    def span(self, number: int) -> slice:
        """Returns where part `number` stands along the tensor's axis `axis`."""
        sizes = [self.transform.shape(part.shape)[self.axis] for part in self.parts]
        return slice(sum(sizes[:number]), sum(sizes[: number + 1]))

    def read(self, tensor: StoredTensor, number: int, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the slice `index` of part `number` as it lies here.

        Of the file it touches no more than the rows that the slice needs, if the transform keeps
        rows.

        Args:
          tensor: the one of this name.
          number: of the part.
          index: a slice with start and stop for each axis of the part.
        """
        leading = self.transform.leading_axis(len(index))
        if leading is None:
            return self.transform.ours(self._cut(tensor.read(), number), self.layer)[index]
        start, stop = index[leading].start, index[leading].stop
        if len(self.parts) > 1 and self.axis == 0:
            first = self.span(number).start
            values = tensor.read(first + start, first + stop)
        else:
            values = self._cut(tensor.read(start, stop), number)
        rest = (*index[:leading], slice(None), *index[leading + 1 :])
        return self.transform.ours(values, self.layer)[rest]

    def _cut(self, values: np.ndarray, number: int) -> np.ndarray:
        if len(self.parts) == 1:
            return values
        return values[(slice(None),) * self.axis + (self.span(number),)]

    def theirs(self, parts: list[np.ndarray]) -> np.ndarray:
        """Returns the values of the whole tensor, of all its parts."""
        values = [self.transform.theirs(part, self.layer) for part in parts]
        return values[0] if len(values) == 1 else np.concatenate(values, axis=self.axis)


@dataclasses.dataclass(frozen=True)
class Correspondence:
    """Correspondence of a model and its tensors in a format; each value is in exactly one.

    Attributes:
      parameters: of the model.
      places: by the name of the tensor, layer after layer.
      parts: where a part of a parameter lies: by path and index, its tensor and number there.
      aliases: another name that a tensor may have in files: the head's, if it is tied.
    """

    parameters: ParameterTable
    places: dict[str, Place]
    parts: dict[str, dict[tuple[int, ...], tuple[Place, int]]]
    aliases: dict[str, str]


def correspondence(form: Format, model: ModelConfig) -> Correspondence:
    """Spells out the rows of a format for a model.

    Raises:
      InputError: the format has no place for something that the model has, each named; or its table
        contradicts itself.
    """
    parameters = parameter_table(model)
    places: dict[str, Place] = {}
    parts: dict[str, dict[tuple[int, ...], tuple[Place, int]]] = {}
    for place in _places(form, model, parameters):
        if place.name in places:
            raise InputError(f"format {form.name} names the tensor {place.name} twice")
        places[place.name] = place
        for number, part in enumerate(place.parts):
            if parts.setdefault(part.path, {}).setdefault(part.index, (place, number))[0] != place:
                raise InputError(f"format {form.name} keeps {part.path} in two tensors")
    homeless = [
        info.path
        for info in parameters
        if len(parts.get(info.path, {})) != _count(info, parts.get(info.path, {}))
    ]
    if homeless:
        raise InputError(f"format {form.name} has no place for {listed(homeless)}")
    return Correspondence(parameters, places, parts, _aliases(form, model))


def _places(form: Format, model: ModelConfig, parameters: ParameterTable) -> Iterator[Place]:
    for row in form.outer:
        infos = _infos(row, "", parameters)
        if infos:
            yield _place(row, infos, (), None)
    for number, segment in enumerate(model.segments):
        rows = form.layer(segment.layer)
        listed = [(row, _infos(row, f"segments.{number}.", parameters)) for row in rows]
        for index in range(segment.repeats):
            for row, infos in listed:
                if not infos:
                    continue
                layer = infos[0].first_layer + index
                for expert in range(infos[0].bank_shape[1]) if row.by_expert else [None]:
                    where = (index,) if expert is None else (index, expert)
                    yield _place(row, infos, where, segment.layer, layer=layer, expert=expert)


def _infos(row: Row, prefix: str, parameters: ParameterTable) -> list[ParameterInfo]:
    """Returns the row's parameters if the model has them; none: the row does not apply."""
    paths = [prefix + path for path in row.paths]
    present = [path for path in paths if path in parameters]
    if present and len(present) < len(paths):
        absent = ", ".join(sorted(set(paths) - set(present)))
        raise InputError(f"{row.name} holds {listed(paths)}, but the model has no {absent}")
    infos = [parameters[path] for path in present]
    for info in infos:
        if row.by_expert and "expert" not in info.axes:
            raise InputError(f"{row.name} is one tensor an expert, but {info.path} has no experts")
        if bool(prefix) != ("{layer}" in row.name):
            raise InputError(f"{row.name}: exactly the rows of layers name a {{layer}}")
    return infos


def _place(
    row: Row,
    infos: list[ParameterInfo],
    index: tuple[int, ...],
    config: LayerConfig | None,
    **numbers: int | None,
) -> Place:
    parts = tuple(Part(info.path, index, info.shape[len(index) :]) for info in infos)
    name, *also = (spelling.format(**numbers) for spelling in (row.name, *row.also))
    return Place(name, parts, row.transform, row.axis, config, tuple(also))


def _count(info: ParameterInfo, parts: Mapping[tuple[int, ...], object]) -> int:
    """Returns of how many parts a parameter consists, as finely as its rows divide it."""
    depth = max(map(len, parts), default=0)
    return math.prod(info.bank_shape[:depth])


def _aliases(form: Format, model: ModelConfig) -> dict[str, str]:
    if not model.tied_head:
        return {}
    names = {row.paths[0]: row.name for row in form.outer}
    return {names["head.weight"]: names["embedding"]} if "head.weight" in names else {}
