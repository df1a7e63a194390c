"""Parity of imported models with what the original library computed, and what comes back."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modbrick import load_model
from modbrick.config import ModelConfig
from modbrick.convert import OpenedSource, export_checkpoint, import_checkpoint, prepare_export
from modbrick.convert.huggingface.directory import open_directory
from modbrick.errors import InputError
from modbrick.formats.safetensors import read_safetensors


def parity(checkpoint: OpenedSource, directory: Path) -> dict[str, Any]:
    """Compares logits and choices of experts with the original's."""
    stored = read_safetensors(directory / "expected.safetensors")
    want = {
        name: stored[name].read()
        for name in stored
        if name in ("input_ids", "attention_mask", "logits") or name.endswith(".indices")
    }
    mask = want.get("attention_mask", np.ones_like(want["input_ids"])) == 1
    graph, parameters = nnx.split(load_model(directory, dtype="float32"))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def forward(parameters: Any) -> tuple[jax.Array, Any]:
        output = nnx.merge(graph, parameters)(
            jnp.asarray(want["input_ids"]),
            attention_mask=jnp.asarray(mask),
            capture=("routing",),
        )
        return output.logits, output.captured["routing"]

    logits, routing = forward(parameters)
    wanted = want["logits"][mask]
    error = np.linalg.norm(np.asarray(logits)[mask] - wanted) / np.linalg.norm(wanted)
    if not np.isfinite(error):
        raise InputError(f"{directory}: logits are not finite")
    result: dict[str, Any] = {"logits_relative_error": float(f"{error:.2e}")}
    wanted_choices = {
        router_of(name): tensor for name, tensor in want.items() if name.endswith(".indices")
    }
    if wanted_choices:
        found = choices(checkpoint.model, routing)
        result["same_experts"] = found.keys() == wanted_choices.keys() and all(
            np.array_equal(of_real_tokens(found[key], mask), of_real_tokens(value, mask))
            for key, value in wanted_choices.items()
        )
    return result


def choices(model: ModelConfig, routing: Mapping[str, Any]) -> dict[tuple[int, str], np.ndarray]:
    """Returns the experts that each router chose, by layer and sublayer."""
    found, first = {}, 0
    for number, segment in enumerate(model.segments):
        for sublayer in ("attention", "feed_forward"):
            if (chosen := routing.get(f"segments.{number}.{sublayer}")) is not None:
                for layer in range(segment.repeats):
                    found[first + layer, sublayer] = np.asarray(chosen.indices[layer])
        first += segment.repeats
    return found


def router_of(name: str) -> tuple[int, str]:
    """Returns the layer and sublayer of a router in the fixtures' names."""
    match = re.search(r"\d+", name)
    if match is None:
        raise InputError(f"{name} names no layer")
    return int(match[0]), "attention" if "att" in name else "feed_forward"


def of_real_tokens(indices: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the experts of each real token; in which order they were found is of no meaning."""
    return np.sort(indices.reshape(mask.size, -1)[mask.reshape(-1)], axis=-1)


def round_trip(checkpoint: OpenedSource) -> dict[str, Any]:
    """Imports, exports, and compares every tensor and the config."""
    with tempfile.TemporaryDirectory() as directory:
        ours, back = Path(directory, "ours"), Path(directory, "back")
        import_checkpoint(checkpoint, ours)
        export_checkpoint(prepare_export(ours, checkpoint.form), back)
        written = open_directory(back)
        equal = written.tensors.keys() == checkpoint.tensors.keys() and all(
            written.tensors[name].dtype == tensor.dtype
            and written.tensors[name].read().tobytes() == tensor.read().tobytes()
            for name, tensor in checkpoint.tensors.items()
        )
        return {
            "tensors": len(checkpoint.tensors),
            "tensors_byte_equal": equal,
            "config_equal": written.config == checkpoint.source.config,
        }
