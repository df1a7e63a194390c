"""Random checkpoints of a format and size, and the comparison of what comes back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer
from modbrick.convert import open_checkpoint
from modbrick.convert.correspondence import correspondence
from modbrick.convert.format import Format, Translation
from modbrick.convert.huggingface.directory import open_directory
from modbrick.convert.huggingface.shards import INDEX, METADATA, divide, index_text
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.formats.safetensors import SafetensorsWriter, TensorSpec

MEDIUM = 500_000_000
"""Bytes of a medium checkpoint."""

BLOCK = 16 << 20
"""Bytes that are drawn at a time."""


def model_of_size(size: str, form: str, fixtures: Path) -> ModelConfig:
    """Returns the MoLM-700M-8B, a small model of its kind, or a widened one of a format's kind.

    Args:
      size: `full`, `small` or `medium`.
      form: name of the format.
      fixtures: directory of FORMAT/MODEL, for `medium`.

    Raises:
      InputError: full and small are sizes of ModuleFormer; or there is no model to be widened.
    """
    if size == "medium":
        found = sorted((fixtures / form).glob("*/config.json"))
        if not found:
            raise InputError(f"{fixtures} holds no model of format {form}")
        return widened(open_checkpoint(found[0].parent).model, MEDIUM // 2)
    if form != "moduleformer":
        raise InputError(f"--size={size} is a size of moduleformer; {form} has --size=medium")
    full = size == "full"
    return moduleformer(
        vocabulary=50_295 if full else 500,
        width=1024 if full else 64,
        layers=48 if full else 4,
        heads=1,
        attention_width=1024 if full else 64,
        feed_forward_width=2048 if full else 128,
        attention_experts=16,
        feed_forward_experts=32,
    )


def widened(model: ModelConfig, parameters: int) -> ModelConfig:
    """Returns the narrowest multiple of a model's widths that has so many parameters."""

    def times(factor: int) -> ModelConfig:
        segments = []
        for segment in model.segments:
            attention, feed_forward = segment.layer.attention, segment.layer.feed_forward
            layer = dataclasses.replace(
                segment.layer,
                attention=dataclasses.replace(attention, head_width=attention.head_width * factor),
                feed_forward=dataclasses.replace(feed_forward, hidden=feed_forward.hidden * factor),
            )
            segments.append(dataclasses.replace(segment, layer=layer))
        return model.replace(width=model.width * factor, segments=tuple(segments))

    factor = 1
    while sum(info.size for info in parameter_table(times(factor))) < parameters:
        factor = factor + max(1, factor // 8)
    return times(factor)


def write_checkpoint(directory: Path, form: Format, model: ModelConfig, largest: int) -> int:
    """Writes random bfloat16 weights as the original library would; returns their bytes."""
    assert form.write_config is not None
    directory.mkdir()
    bfloat16 = np.dtype(jnp.bfloat16)
    places = correspondence(form, model).places
    tensors = {name: TensorSpec(place.shape, bfloat16) for name, place in places.items()}
    files = divide(tensors, largest)
    config = form.write_config(Translation(model)) | {
        "model_type": form.model_type,
        "architectures": [form.architecture],
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / INDEX).write_text(index_text(tensors, files))
    draw = np.random.default_rng(0)
    for file, names in files.items():
        specs = {name: tensors[name] for name in names}
        with SafetensorsWriter(directory / file, specs, METADATA) as writer:
            for name in names:
                for block in random_blocks(draw, tensors[name].nbytes // 2):
                    writer.write(block)
    return sum(spec.nbytes for spec in tensors.values())


def random_blocks(draw: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Yields random finite bfloat16 values: any sign and fraction, magnitudes below two."""
    for start in range(0, count, BLOCK // 2):
        bits = np.frombuffer(draw.bytes(2 * min(BLOCK // 2, count - start)), np.uint16)
        yield (bits & np.uint16(0xBFFF)).view(jnp.bfloat16)


def compare(one: Path, other: Path) -> None:
    """Compares the tensors of two directories byte for byte.

    Raises:
      InputError: they differ.
    """
    left, right = open_directory(one).tensors, open_directory(other).tensors
    if left.keys() != right.keys():
        raise InputError(f"{one} and {other} hold different tensors")
    for name, tensor in left.items():
        same = (tensor.shape, tensor.dtype) == (right[name].shape, right[name].dtype)
        if not same or not np.array_equal(
            tensor.read().view(np.uint16), right[name].read().view(np.uint16)
        ):
            raise InputError(f"{name} differs between {one} and {other}")
