r"""Measures what conversion keeps: logits, choices of experts, and every byte on the way back.

    python scripts/check_conversion.py --json=docs/figures/conversion_parity.json

For each small model below --fixtures (random weights, with what the original library computed with
them in expected.safetensors): the relative error of the imported model's logits in float32 (norm of
the difference over norm, real tokens only), whether the routers choose the same experts, and
whether an import and an export give back every tensor byte for byte and the same config.

The last line of standard output is one JSON object.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from modbrick.command_line import check_output, run
from modbrick.convert import (
    OpenedSource,
    export_checkpoint,
    import_checkpoint,
    load,
    open_checkpoint,
    prepare_export,
)
from modbrick.convert.huggingface.directory import open_directory
from modbrick.errors import InputError
from modbrick.formats.safetensors import read_safetensors

FIXTURES = flags.DEFINE_string("fixtures", "tests/fixtures", "Directory of FORMAT/MODEL.")
JSON = flags.DEFINE_string("json", None, "File for the result too.")


def main(argv: Sequence[str]) -> None:
    """Measures every model and prints a line for each."""
    del argv
    check_output(JSON)
    found = sorted(path.parent for path in Path(FIXTURES.value).glob("*/*/expected.safetensors"))
    found = [path for path in found if (path / "config.json").is_file()]
    if not found:
        raise InputError(f"{FIXTURES.value} holds no models")
    results = {}
    for directory in found:
        checkpoint = open_checkpoint(directory)
        result = parity(checkpoint, directory) | round_trip(checkpoint)
        results[f"{checkpoint.form.name}/{directory.name}"] = result
        print(f"{checkpoint.form.name}/{directory.name}: {result}", flush=True)
    if JSON.value is not None:
        Path(JSON.value).write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


def parity(checkpoint: OpenedSource, directory: Path) -> dict[str, Any]:
    """Compares logits and choices of experts with the original's."""
    stored = read_safetensors(directory / "expected.safetensors")
    want = {
        name: stored[name].read()
        for name in stored
        if name in ("input_ids", "attention_mask", "logits") or name.endswith(".indices")
    }
    mask = want.get("attention_mask", np.ones_like(want["input_ids"])) == 1
    graph, parameters = nnx.split(load(directory, dtype="float32"))

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
        found = {}
        for number, segment in enumerate(checkpoint.model.segments):
            first = sum(s.repeats for s in checkpoint.model.segments[:number])
            for sublayer in ("attention", "feed_forward"):
                if (chosen := routing.get(f"segments.{number}.{sublayer}")) is not None:
                    for layer in range(segment.repeats):
                        found[first + layer, sublayer] = np.asarray(chosen.indices[layer])
        result["same_experts"] = found.keys() == wanted_choices.keys() and all(
            np.array_equal(of_real_tokens(found[key], mask), of_real_tokens(value, mask))
            for key, value in wanted_choices.items()
        )
    return result


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


if __name__ == "__main__":
    run(main)
