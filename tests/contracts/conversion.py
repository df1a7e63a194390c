"""Contract of every checkpoint format, called by the test file of each format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modbrick import load_parameters
from modbrick.checkpoints import Metadata, describe
from modbrick.config import ModelConfig
from modbrick.convert import (
    export_checkpoint,
    import_checkpoint,
    open_checkpoint,
    prepare_export,
)
from modbrick.convert.correspondence import correspondence
from modbrick.convert.format import Format
from modbrick.convert.huggingface.directory import open_directory
from modbrick.convert.huggingface.exported_config import foreign_config
from modbrick.formats.stored_tensor import StoredTensor


def check_rows(form: Format, model: ModelConfig) -> None:
    """Every value of the model has exactly one place, and comes back from there.

    Args:
      form: the format.
      model: a small one.
    """
    places = correspondence(form, model)
    parameters, first = {}, 0
    for info in places.parameters:  # every value is another number
        parameters[info.path] = np.arange(first, first + info.size, dtype=np.int32).reshape(
            info.shape
        )
        first += info.size
    tensors = {}
    for name, place in places.places.items():
        tensor = place.theirs([parameters[part.path][part.index] for part in place.parts])
        assert tensor.shape == place.shape, name
        tensors[name] = tensor
    everything = np.concatenate([tensor.reshape(-1) for tensor in tensors.values()])
    assert np.array_equal(np.sort(everything), np.arange(first))
    for path, parts in places.parts.items():
        for index, (place, number) in parts.items():
            wanted = parameters[path][index]
            halves = [slice(size // 2, size) for size in wanted.shape]
            for span in ([slice(0, size) for size in wanted.shape], halves):
                values = place.read(_stored(tensors[place.name]), number, tuple(span))
                assert np.array_equal(values, wanted[tuple(span)]), place.name


def check_round_trip(source: Path, form: Format, directory: Path) -> None:
    """Imported and exported again, every tensor is byte-equal and the config is the same.

    And imported once more, so is every parameter.

    Args:
      source: a checkpoint of the original library.
      form: its format.
      directory: empty.
    """
    opened = open_checkpoint(source)
    assert opened.form == form
    import_checkpoint(opened, directory / "ours")
    # Many files, so that values come from the middle of tensors and the index matters.
    largest = max(1, sum(tensor.nbytes for tensor in opened.tensors.values()) // 3)
    export = prepare_export(directory / "ours", form)
    export_checkpoint(export, directory / "theirs", max_shard_size=largest)

    written = open_directory(directory / "theirs")
    assert written.tensors.keys() == opened.tensors.keys()
    for name, tensor in opened.tensors.items():
        found = written.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert found.read().tobytes() == tensor.read().tobytes(), name
    wanted = json.loads((source / "config.json").read_text())
    assert dict(written.config) == wanted | {
        "model_type": form.model_type,
        "architectures": [form.architecture],
    }

    import_checkpoint(open_checkpoint(directory / "theirs"), directory / "again")
    parameters = load_parameters(directory / "again")
    assert describe(directory / "again").metadata.model == opened.model
    for path, value in load_parameters(directory / "ours").items():
        again = np.asarray(parameters[path])
        assert again.tobytes() == np.asarray(value).tobytes(), path


def check_own_config(form: Format, model: ModelConfig) -> None:
    """A config that was never imported reads back as the same model."""
    assert form.write_config is not None
    config = foreign_config(form, Metadata(model=model), "float32", "model")
    assert form.read_config(config, "config.json").model.segments == model.segments


def _stored(values: np.ndarray) -> StoredTensor:
    return StoredTensor(
        values.shape,
        values.dtype,
        lambda start, stop: values[start:stop] if values.shape else values,
    )
