"""Checkpoints of the original ModuleFormer: how its tensors correspond to parameters here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from modbrick.addresses import ParameterInfo, unflatten
from modbrick.config import ModelConfig
from modbrick.convert.moduleformer_config import (
    ModuleFormerConfig,
    model_config,
    objective_weights,
    read_config,
)
from modbrick.convert.source import Source, open_source
from modbrick.convert.stored_tensor import StoredTensor
from modbrick.errors import InputError
from modbrick.layers.parameter_table import parameter_table

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(jnp.bfloat16))
"""Of the parameters; each is exact in float32."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter here and there.

    Attributes:
      path: of the parameter here; under `segments.0` it is stacked over the layers.
      name: of the tensor in the original, where `{layer}` stands for the index of the layer.
      transposed: the original keeps the axes (out, in), not (in, out).
    """

    path: str
    name: str
    transposed: bool = False


_OUTER = (
    Row("embedding", "transformer.wte.weight"),
    Row("norm.scale", "transformer.ln_f.weight"),
    Row("norm.bias", "transformer.ln_f.bias"),
)
_HEAD = Row("head.weight", "lm_head.weight", transposed=True)

_LAYER = (
    Row("attention_norm.scale", "ln_1.weight"),
    Row("attention_norm.bias", "ln_1.bias"),
    Row("attention.query.weight", "attn.q_proj.experts.weight"),
    Row("attention.output.weight", "attn.q_proj.output_experts.weight"),
    Row("feed_forward_norm.scale", "ln_2.weight"),
    Row("feed_forward_norm.bias", "ln_2.bias"),
    Row("feed_forward.up.weight", "mlpf.experts.weight"),
    Row("feed_forward.down.weight", "mlpf.output_experts.weight"),
)
_KEY_VALUE = (
    Row("attention.key.weight", "attn.k_proj.weight", transposed=True),
    Row("attention.key.bias", "attn.k_proj.bias"),
    Row("attention.value.weight", "attn.v_proj.weight", transposed=True),
    Row("attention.value.bias", "attn.v_proj.bias"),
)
_ROUTERS = {"attention.router": "attn.q_proj.gate", "feed_forward.router": "mlpf.gate"}
_ROUTER = {
    "linear": (Row("output.weight", "w_gate.0.weight", transposed=True),),
    "mlp": (
        Row("hidden.weight", "w_gate.0.weight", transposed=True),
        Row("hidden.bias", "w_gate.0.bias"),
        Row("output.weight", "w_gate.3.weight", transposed=True),
    ),
    "gmm": (
        Row("hidden.weight", "w_gate.weight", transposed=True),
        Row("centroids", "expert_centroids"),
        Row("temperature", "temperature"),
    ),
}

IGNORED = re.compile(r"transformer\.h\.\d+\.attn\.(mask|cum_weight)")
"""Constant triangles that the original keeps as buffers and files carry along."""


def rows(original: ModuleFormerConfig) -> tuple[Row, ...]:
    """Lists the parameters of a model, here and there; each side's names are unique."""
    layer = list(_LAYER)
    if original.has_key_value:
        layer += _KEY_VALUE
    for path, name in _ROUTERS.items():
        layer += [_below(path, name, row) for row in _ROUTER[original.gate_type]]
    stacked = [_below("segments.0", "transformer.h.{layer}", row) for row in layer]
    return (*_OUTER, *([] if original.tie_word_embeddings else [_HEAD]), *stacked)


@dataclasses.dataclass(frozen=True)
class ModuleFormerCheckpoint:
    """A checkpoint of the original: its tensors are all there and fit; none of them is read yet.

    Attributes:
      config: the model.
      objective: weights of the router losses, by the names of `ObjectiveConfig`.
      parameters: for each path, what it is here, its row, and its tensors by layer (one, if the
        parameter is not stacked).
    """

    config: ModelConfig
    objective: dict[str, float]
    parameters: Mapping[str, tuple[ParameterInfo, Row, tuple[StoredTensor, ...]]]

    def read(self, path: str, layers: slice = slice(None)) -> np.ndarray:
        """Returns a parameter in float32, filled from the files one layer at a time.

        Args:
          path: of the parameter.
          layers: which layers of a stacked parameter.
        """
        info, row, tensors = self.parameters[path]
        if "layer" not in info.axes:
            return _values(tensors[0], row).astype(np.float32)
        tensors = tensors[layers]
        stacked = np.empty((len(tensors), *info.shape[1:]), np.float32)
        for index, tensor in enumerate(tensors):
            stacked[index] = _values(tensor, row)
        return stacked


def open_checkpoint(directory: str | Path) -> ModuleFormerCheckpoint:
    """Reads the configuration and the headers of the weights, and compares them.

    Args:
      directory: with `config.json`, and safetensors or `.bin` weights, sharded or not.

    Raises:
      InputError: what `Source` refuses; a configuration that cannot be represented exactly; or
        tensors that are missing, unexpected, or of the wrong shape or dtype, each of them by name.
    """
    source = open_source(directory)
    where = str(source.directory / "config.json")
    original = read_config(source.config, where)
    _check_sizes(original, source, where)
    config, objective = model_config(original, where), objective_weights(original, where)
    table = parameter_table(config)
    tensors = _untied(source) if original.tie_word_embeddings else dict(source.tensors)
    problems, parameters = [], {}
    for row in rows(original):
        info = table[row.path]
        stacked = "layer" in info.axes
        shape = info.shape[1:] if stacked else info.shape
        names = [row.name.format(layer=i) for i in range(info.shape[0] if stacked else 1)]
        found = [tensors.pop(name, None) for name in names]
        for name, tensor in zip(names, found, strict=True):
            expected = shape[::-1] if row.transposed else shape
            problems += [f"{name} {problem}" for problem in _problems(tensor, expected)]
        members = tuple(tensor for tensor in found if tensor is not None)
        parameters[row.path] = (info, row, members)
    problems += [f"{name} is not expected" for name in tensors if not IGNORED.fullmatch(name)]
    if problems:
        raise InputError(f"{directory}: {len(problems)} tensors do not fit: {'; '.join(problems)}")
    return ModuleFormerCheckpoint(config, objective, parameters)


def import_checkpoint(
    directory: str | Path,
) -> tuple[ModelConfig, dict[str, float], dict[str, Any]]:
    """Reads a checkpoint of the original ModuleFormer whole.

    Args:
      directory: as for `open_checkpoint`, which reads one parameter at a time.

    Returns:
      The model's config, the weights of its router losses by the names of `ObjectiveConfig`, and
      its parameters: nested, stacked over layers, float32 numpy arrays.

    Raises:
      InputError: as `open_checkpoint`, or a file that proves damaged in reading.
    """
    checkpoint = open_checkpoint(directory)
    parameters = {path: checkpoint.read(path) for path in checkpoint.parameters}
    return checkpoint.config, checkpoint.objective, unflatten(parameters)


def _below(path: str, name: str, row: Row) -> Row:
    return Row(f"{path}.{row.path}", f"{name}.{row.name}", row.transposed)


def _values(tensor: StoredTensor, row: Row) -> np.ndarray:
    values = tensor.read()
    return values.T if row.transposed else values


def _problems(tensor: StoredTensor | None, expected: tuple[int, ...]) -> list[str]:
    if tensor is None:
        return ["is missing"]
    if tensor.shape != expected:
        return [f"has shape {list(tensor.shape)}, expected {list(expected)}"]
    if tensor.dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        return [f"has dtype {tensor.dtype}, expected one of {known}"]
    return []


def _check_sizes(original: ModuleFormerConfig, source: Source, where: str) -> None:
    """Refuses sizes beyond those of any tensor before something of such a size is made."""
    largest = max((size for t in source.tensors.values() for size in t.shape), default=0)
    names = ["vocab_size", "n_embd", "att_hidden", "ffd_hidden", "n_att_experts", "n_mlp_experts"]
    if original.gate_type != "linear":
        names.append("gating_size")
    for name in names:
        if getattr(original, name) > largest:
            raise InputError(
                f"{where}: {name} is {getattr(original, name)}, "
                f"but no tensor of the checkpoint is larger than {largest} along any axis"
            )
    if original.n_layer > len(source.tensors):
        raise InputError(
            f"{where}: n_layer is {original.n_layer}, "
            f"but the checkpoint has only {len(source.tensors)} tensors"
        )


def _untied(source: Source) -> dict[str, StoredTensor]:
    """Returns the tensors without the head, which must be a copy of the embedding if it is there.

    Writers keep one of the two, either of them.
    """
    tensors = dict(source.tensors)
    embedding, head = _OUTER[0].name, _HEAD.name
    stored = tensors.pop(head, None)
    if stored is None:
        return tensors
    if embedding not in tensors:
        return {embedding: stored, **tensors}
    if tensors[embedding].shape != stored.shape or not np.array_equal(
        tensors[embedding].read(), stored.read()
    ):
        raise InputError(
            f"{source.directory}: tie_word_embeddings is set, but {head} and {embedding} differ"
        )
    return tensors
