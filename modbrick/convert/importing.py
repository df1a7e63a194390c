"""Import: a foreign checkpoint becomes one of this library, slice by slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from modbrick.checkpoints import Metadata
from modbrick.checkpoints.files import first_line
from modbrick.checkpoints.loading import TOKENIZER
from modbrick.checkpoints.slices import SliceWriter, StoredForm, piece_shape
from modbrick.checkpoints.workdir.directory import CHECKPOINTS
from modbrick.convert.correspondence import correspondence
from modbrick.convert.finite import NotFinite
from modbrick.convert.opening import OpenedSource
from modbrick.convert.tokenizer import SourceTokenizer, read_tokenizer
from modbrick.data import Tokenizer
from modbrick.errors import InputError
from modbrick.staging import staging


@dataclasses.dataclass(frozen=True)
class Imported:
    """Result of an import.

    Attributes:
      source: what was imported.
      directory: that `load_model` takes.
      values: number of parameters.
      bytes: of the stored values.
      not_finite: values that are infinite or no number.
      tokenizer: the one that came along, or none, and what is to be said of it.
    """

    source: OpenedSource
    directory: Path
    values: int
    bytes: int
    not_finite: int
    tokenizer: SourceTokenizer

    def to_mapping(self) -> dict[str, Any]:
        """Returns JSON-able data; `objective` has the weights of the original's router losses."""
        return {
            "format": self.source.form.name,
            "checkpoint": str(self.directory),
            "parameters": self.values,
            "bytes": self.bytes,
            "layers": len(self.source.model.layers),
            "objective": dict(self.source.translation.objective),
            "tokenizer": self.tokenizer.tokenizer is not None,
        }

    def remarks(self) -> Iterator[str]:
        """Yields in a line each what may surprise whoever uses the result."""
        yield from self.tokenizer.remarks
        if self.not_finite:
            yield f"{self.not_finite} weights are not finite"
        yield from self.source.remarks


def import_checkpoint(
    checkpoint: OpenedSource,
    target: str | Path,
    *,
    dtype: str | None = None,
    tokenizer: str | None = None,
    allow_not_finite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Imported:
    """Writes a checkpoint that trains, evaluates and generates, in a directory like a run's.

    Memory is bounded by a few slices, whatever the model's size. Interrupted or failed, the target
    is left as it was.

    Args:
      checkpoint: an opened source.
      target: new or empty, on a local disk.
      dtype: of all parameters (`float32`, `bfloat16`); None: as they are in the source, so that
        nothing is rounded and nothing grows. Training keeps float32 whatever is stored.
      tokenizer: None: the source's, if it has one that is read; `none`: none; else a file or
        directory with another.
      allow_not_finite: infinities and values that are no number come along; the checkpoint says so,
        and is loaded and exported all the same.
      progress: called with how many bytes of the stored values were written since the last time.

    Raises:
      InputError: the target holds something, the tokenizer or a tensor proves damaged in reading,
        there are values that are not finite (names the tensors); or writing fails.

    Examples:
        >>> import modbrick
        >>> source = modbrick.open_checkpoint("their_llama")
        >>> imported = modbrick.import_checkpoint(source, "imported")
        >>> modbrick.load_model("imported").config == source.model
        True
    """
    with staging(Path(target)) as directory:
        found = _tokenizer(checkpoint, tokenizer)
        for name, content in found.files.items():
            file = directory / TOKENIZER / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        forms = {
            info.path: _stored_form(checkpoint, info.path, dtype)
            for info in checkpoint.correspondence.parameters
        }
        broken = NotFinite(checkpoint)
        try:
            with SliceWriter(epath.Path(directory / CHECKPOINTS / "0"), forms) as writer:
                for path, index, values in _pieces(checkpoint, forms):
                    if writer.write(path, index, values):
                        broken.add(path, index, values)
                    progress(values.nbytes)
                if broken and not allow_not_finite:
                    raise InputError(broken.complaint())
                writer.finish(0, _metadata(checkpoint, forms, found.tokenizer, len(broken)))
        except InputError:
            raise
        except (OSError, ValueError, RuntimeError) as error:  # what TensorStore and Orbax raise
            raise InputError(f"{target} could not be written ({first_line(error)})") from error
    sizes = [np.prod(form.shape, dtype=np.int64) for form in forms.values()]
    stored = [
        int(size) * form.dtype.itemsize for size, form in zip(sizes, forms.values(), strict=True)
    ]
    return Imported(
        checkpoint,
        Path(target),
        int(sum(sizes)),
        sum(stored),
        len(broken),
        found,
    )


def _tokenizer(checkpoint: OpenedSource, chosen: str | None) -> SourceTokenizer:
    """Reads the tokenizer; one that cannot be read does not keep anybody from the weights."""
    try:
        return read_tokenizer(checkpoint, chosen)
    except InputError as error:
        raise InputError(
            f"{error} (--tokenizer=none leaves the tokenizer out, --tokenizer=PATH takes another)"
        ) from None


def _pieces(
    checkpoint: OpenedSource, forms: dict[str, StoredForm]
) -> Iterator[tuple[str, tuple[slice, ...], np.ndarray]]:
    """Reads every parameter in pieces, each while the one before is written."""
    places = [(path, index) for path, form in forms.items() for index in form.pieces()]

    def read(path: str, index: tuple[slice, ...]) -> tuple[str, tuple[slice, ...], np.ndarray]:
        return path, index, checkpoint.read(path, index, dtype=forms[path].dtype)

    with ThreadPoolExecutor(1, thread_name_prefix="reading") as reader:
        ahead = None
        for place in places:
            following = reader.submit(read, *place)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()


def stored_bytes(checkpoint: OpenedSource, dtype: str | None = None) -> int:
    """Returns how many bytes of values an import will write."""
    return sum(
        info.size * _dtype(checkpoint, info.path, dtype).itemsize
        for info in checkpoint.correspondence.parameters
    )


def _dtype(checkpoint: OpenedSource, path: str, dtype: str | None) -> np.dtype:
    return checkpoint.dtype(path) if dtype is None else np.dtype(jnp.dtype(dtype))


def _stored_form(checkpoint: OpenedSource, path: str, dtype: str | None) -> StoredForm:
    """Divides a parameter by layers and experts, and what is still large by rows of the tensor."""
    info = checkpoint.correspondence.parameters[path]
    parts = checkpoint.correspondence.parts[path]
    index, (place, _) = next(iter(parts.items()))
    leading = place.transform.leading_axis(len(info.shape) - len(index))
    axes = list(range(len(info.bank_shape)))
    if leading is not None:
        axes += [len(index) + leading] if len(index) + leading not in axes else []
        axes += [len(info.shape) - 1] if len(info.shape) - 1 not in axes else []
    stored = _dtype(checkpoint, path, dtype)
    return StoredForm(info.shape, stored, piece_shape(info.shape, stored.itemsize, tuple(axes)))


def _metadata(
    checkpoint: OpenedSource,
    forms: dict[str, StoredForm],
    tokenizer: Tokenizer | None,
    not_finite: int,
) -> Metadata:
    extra: dict[str, Any] = {
        "imported": checkpoint.form.name,
        "objective": dict(checkpoint.translation.objective),
    }
    if not_finite:
        extra["not_finite"] = not_finite
    if checkpoint.form.container == "directory":
        extra["config"] = dict(checkpoint.source.config)
    if checkpoint.ignored_keys:
        extra["ignored_keys"] = dict(checkpoint.ignored_keys)
    # So that an export can write each tensor in its own dtype, where neighbours differ.
    dtypes = {
        name: str(checkpoint.dtype_of(place.parts[0]))
        for name, place in correspondence(checkpoint.form, checkpoint.model).places.items()
        if any(forms[part.path].dtype != checkpoint.dtype_of(part) for part in place.parts)
    }
    if dtypes:
        extra["dtypes"] = dtypes
    return Metadata(
        model=checkpoint.model,
        tokenizer={}
        if tokenizer is None
        else dataclasses.asdict(tokenizer.identity) | {"name": str(checkpoint.source.path)},
        extra=extra,
    )
