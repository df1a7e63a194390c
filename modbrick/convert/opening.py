"""Opening a source: recognising its format, and comparing all it holds with what it should hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.config import ModelConfig
from modbrick.convert.correspondence import Correspondence, Part, correspondence
from modbrick.convert.format import Format, Translation
from modbrick.convert.gguf.header import is_gguf
from modbrick.convert.gguf.source import open_gguf
from modbrick.convert.gguf.values import shown
from modbrick.convert.huggingface.directory import open_directory
from modbrick.convert.huggingface.keys import noise, without_keys
from modbrick.convert.registry import recognise
from modbrick.convert.source import Source
from modbrick.convert.tensor_names import tensors_by_name
from modbrick.errors import InputError, listed, located
from modbrick.formats.stored_tensor import StoredTensor

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(jnp.bfloat16))
"""Of the weights; each is exact in float32."""

ROUNDED = np.dtype(np.float64)
"""Of weights that are rounded to float32 as they are read."""


@dataclasses.dataclass(frozen=True)
class OpenedSource:
    """A source whose tensors are all there and fit; none of them is read yet.

    Attributes:
      source: the files.
      form: their format.
      translation: what the config says.
      correspondence: which tensor holds what.
      tensors: by name, exactly those of the correspondence.
      ignored_keys: what stood in the config under keys that were to be ignored.
      remarks: what may surprise whoever uses the model, in a line each.
    """

    source: Source
    form: Format
    translation: Translation
    correspondence: Correspondence
    tensors: Mapping[str, StoredTensor]
    ignored_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def model(self) -> ModelConfig:
        """The model."""
        return self.translation.model

    def dtype(self, path: str) -> np.dtype:
        """Returns the dtype of a parameter's tensors; float32 if they differ."""
        parts = self.correspondence.parts[path].values()
        dtypes = {self.tensors[place.name].dtype for place, _ in parts}
        return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def dtype_of(self, part: Part) -> np.dtype:
        """Returns the dtype of the tensor that holds a part, however finely files divide it."""
        parts = self.correspondence.parts[part.path]
        depth = len(next(iter(parts)))
        place, _ = parts[(*part.index, *(0,) * depth)[:depth]]
        return self.tensors[place.name].dtype

    def read(
        self,
        path: str,
        index: tuple[slice, ...] | None = None,
        *,
        dtype: jax.typing.DTypeLike | None = None,
    ) -> np.ndarray:
        """Reads a slice of a parameter, and of the files no more than it needs; read-only.

        Args:
          path: of the parameter.
          index: a slice without step for each axis (such as `make_array_from_callback` asks for);
            None: everything.
          dtype: of the result; None: as `dtype(path)`.

        Raises:
          InputError: a file proves damaged in reading.
        """
        shape = self.correspondence.parameters[path].shape
        index = (slice(None),) * len(shape) if index is None else index
        spans = [slice(*s.indices(n)) for s, n in zip(index, shape, strict=True)]
        parts = self.correspondence.parts[path]
        depth = len(next(iter(parts)))
        wanted = self.dtype(path) if dtype is None else jnp.dtype(dtype)

        def part(bank: tuple[int, ...]) -> np.ndarray:
            where = tuple(span.start + i for span, i in zip(spans, bank, strict=False))
            place, number = parts[where]
            return place.read(self.tensors[place.name], number, tuple(spans[depth:]))

        sizes = [span.stop - span.start for span in spans]
        if math.prod(sizes[:depth]) == 1:  # the file's own bytes will do
            return part((0,) * depth).astype(wanted, copy=False).reshape(sizes)
        values = np.empty(sizes, wanted)
        for bank in np.ndindex(values.shape[:depth]):
            values[bank] = part(bank)
        return values


def open_source(path: str | Path) -> Source:
    """Opens a source of any kind; no weights are read.

    Raises:
      InputError: anything that is missing, damaged, contradictory or named twice.
    """
    path = Path(path)
    return open_gguf(path) if is_gguf(path) else open_directory(path)


def open_checkpoint(path: str | Path, *, ignore_keys: Collection[str] = ()) -> OpenedSource:
    """Recognises the format of a source, reads its config and headers, and compares them.

    Args:
      path: a directory with `config.json` and weights (safetensors or `.bin`, sharded or not), or a
        GGUF file.
      ignore_keys: keys of the config that are read as if they were not there, because the caller
        knows that the model does not depend on them; `rope_scaling.odd` is one within another.

    Raises:
      InputError: what `open_source` refuses; an unknown format; a key to ignore that is not there;
        a model that cannot be represented exactly; or tensors that are missing, unexpected, or of
        the wrong shape or dtype, each of them by name.

    Examples:
        >>> import modbrick
        >>> source = modbrick.open_checkpoint("their_llama")  # config.json, model.safetensors
        >>> source.form.name, source.model.width
        ('llama', 16)
    """
    source = open_source(path)
    form = recognise(source.container, source.model_type, source.where)
    config, ignored = without_keys(source.config, ignore_keys, source.where)
    if source.container == "gguf":
        ignored = {key: shown(value) for key, value in ignored.items()}  # arrays of any size
    source = dataclasses.replace(source, config=config)
    _check_layers(form, source)
    translation = form.read_config(config, source.where)
    _check_sizes(translation.model, source)
    places, tensors = _places(form, translation.model, source)
    problems, found = [], {}
    for name, place in places.places.items():
        tensor = tensors.pop(name, None)
        problems += [f"{name} {problem}" for problem in _problems(tensor, place.shape)]
        if tensor is not None:
            found[name] = _rounded(tensor)
    others = [
        f"{name} is not expected"
        for name in tensors
        if form.ignored is None or not form.ignored.fullmatch(name)
    ]
    if problems or others:
        # Each list by itself: where all are missing, the others tell their names from ours.
        named = "; ".join(listed(group, "; ") for group in (problems, others) if group)
        count = len(problems) + len(others)
        raise InputError(f"{path}: {count} tensors do not fit: {named}")
    remarks = _remarks(source, ignored)
    return OpenedSource(source, form, translation, places, found, ignored, remarks)


def _places(
    form: Format, model: ModelConfig, source: Source
) -> tuple[Correspondence, dict[str, StoredTensor]]:
    """Returns the table whose tensors the source has, or most of them, and the tensors by name."""
    found = []
    for layer in (form.layer, *form.other_layers):
        with located(source.where):
            places = correspondence(dataclasses.replace(form, layer=layer), model)
        tensors = tensors_by_name(places, form.base, source)
        missing = len(places.places.keys() - tensors.keys())
        found.append((missing / len(places.places), places, tensors))
        if not missing:
            break
    _, places, tensors = min(found, key=lambda each: each[0])
    return places, tensors


def _remarks(source: Source, ignored: Mapping[str, Any]) -> tuple[str, ...]:
    """Says what of the source is not as it is there."""
    found = [f"{key} is ignored; it is {value!r}" for key, value in ignored.items()]
    found += [
        f"{key} is {value} in the original's training; nothing is dropped here"
        for key, value in noise(source.config).items()
    ]
    rounded = sum(tensor.dtype == ROUNDED for tensor in source.tensors.values())
    if rounded:
        found.append(f"{rounded} tensors are {ROUNDED}, and rounded to float32")
    return tuple(found)


def _rounded(tensor: StoredTensor) -> StoredTensor:
    """Returns a tensor of float64 as one of float32, and others as they are."""
    if tensor.dtype != ROUNDED:
        return tensor

    def load(start: int, stop: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # infinities are reported where they are used
            values = tensor.load(start, stop).astype(np.float32)
        values.flags.writeable = False
        return values

    return StoredTensor(tensor.shape, np.dtype(np.float32), load)


def _problems(tensor: StoredTensor | None, expected: tuple[int, ...]) -> list[str]:
    if tensor is None:
        return ["is missing"]
    if tensor.shape != expected:
        return [f"has shape {list(tensor.shape)}, expected {list(expected)}"]
    if tensor.dtype not in (*DTYPES, ROUNDED):
        known = ", ".join(map(str, (*DTYPES, ROUNDED)))
        return [f"has dtype {tensor.dtype}, expected one of {known}"]
    return []


def _check_layers(form: Format, source: Source) -> None:
    """Refuses more layers than there are tensors before something of such a length is made."""
    for key in {form.layers_key, "num_hidden_layers"}:
        layers = source.config.get(key)
        if isinstance(layers, int | float) and layers > len(source.tensors):
            raise InputError(
                f"{source.where}: {key} is {layers}, "
                f"but the checkpoint has only {len(source.tensors)} tensors"
            )


def _check_sizes(model: ModelConfig, source: Source) -> None:
    """Refuses sizes beyond those of any tensor before something of such a size is made."""
    largest = max((size for t in source.tensors.values() for size in t.shape), default=0)
    sizes = {"vocabulary": model.vocabulary, "width": model.width}
    layers = sum(segment.repeats for segment in model.segments)
    if layers > len(source.tensors):
        raise InputError(
            f"{source.where}: it has {layers} layers, "
            f"but the checkpoint has only {len(source.tensors)} tensors"
        )
    for segment in model.segments:
        attention, feed_forward = segment.layer.attention, segment.layer.feed_forward
        sizes["attention width"] = max(attention.query_width, attention.key_width)
        sizes["hidden width"] = feed_forward.hidden
        for bank, experts in (
            ("attention experts", attention.experts),
            ("feed-forward experts", feed_forward.experts),
        ):
            if experts is not None:
                sizes[f"number of {bank}"] = experts.count
                if experts.router.kind != "linear":
                    sizes["router width"] = experts.router.hidden
        for name, size in sizes.items():
            if size > largest:
                raise InputError(
                    f"{source.where}: the {name} is {size}, "
                    f"but no tensor of the checkpoint is larger than {largest} along any axis"
                )
