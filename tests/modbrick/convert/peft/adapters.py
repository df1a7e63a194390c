"""The models and adapters that `tests/fixtures/peft/make_fixtures.py` has made."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from modbrick.bricks import Brick, BrickConfig, Plugged, plugged
from modbrick.bricks.table import leaves
from modbrick.config import ModelConfig
from modbrick.convert import open_checkpoint
from modbrick.convert.peft import read_adapter
from modbrick.decoder.functional import functional_decoder
from modbrick.formats.safetensors import SafetensorsWriter, TensorSpec, read_safetensors
from modbrick.parameters import Parameters
from tests.compilation import QUICK

ROOT = Path(__file__).parents[4] / "tests" / "fixtures" / "peft"
READ = {
    "llama": (
        "lora", "rslora", "patterns", "rslora_patterns", "layers", "regex", "bfloat16",
        "lora_bias", "ia3", "ia3_feed_forward", "adalora", "vera",
    ),
    "mixtral": ("lora", "ia3"),
    "granitemoe": ("lora", "rslora"),
    "jetmoe": ("lora", "lora_bias", "ia3"),
}  # fmt: skip
ADAPTERS = [ROOT / family / name for family, names in READ.items() for name in names]
# Those that are no LoRA in the file are read only.
WRITTEN = [path for path in ADAPTERS if path.name not in ("adalora", "vera")]


def label(directory: Path) -> str:
    return f"{directory.parent.name}/{directory.name}"


@functools.cache
def model_of(family: str) -> ModelConfig:
    return open_checkpoint(ROOT / family / "model").model


@functools.cache
def expected(directory: Path) -> dict[str, np.ndarray]:
    return tensors(directory / "expected.safetensors")


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in read_safetensors(path).items()}


@functools.cache
def logits(family: str) -> dict[Path, np.ndarray]:
    """Logits of a family's model with each adapter, all of them in one batch, for the tokens."""
    checkpoint = open_checkpoint(ROOT / family / "model")
    model = checkpoint.model
    paths = [info.path for info in checkpoint.correspondence.parameters]
    directories = [ROOT / family / name for name in READ[family]]
    bricks = {d: read_adapter(d, model, name=d.name) for d in directories}
    configs = {name: b.config for of in bricks.values() for name, b in of.items()}
    values: dict[str, Array] = {}
    for of in bricks.values():
        for name, brick in of.items():
            values |= brick.parameters(name, model)
    plug = plugged(model, configs, values)
    tokens = expected(ROOT / family / "model")["tokens"]
    ids = plug.ids([name for of in bricks.values() for name in ["+".join(of)] * len(tokens)])
    decoder = functional_decoder(model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(parameters: Parameters, tokens: Array, plug: Plugged, ids: Array) -> Array:
        return decoder.bind(parameters)(tokens, bricks=plug, brick_ids=ids).logits

    parameters = {path: checkpoint.read(path) for path in paths}
    found = run(parameters, np.tile(tokens, (len(bricks), 1)), plug, ids)
    return dict(zip(directories, np.split(np.asarray(found), len(bricks)), strict=True))


def random_brick(config: BrickConfig, model: ModelConfig, seed: int = 0) -> Brick:
    """A brick on layers whose values are all drawn."""
    generator = np.random.default_rng(seed)
    values = {
        f"{place.address(layer)}.{leaf}": generator.standard_normal(info.shape).astype(np.float32)
        for place, leaf, info in leaves(model, config)
        for layer in place.layers
    }
    return Brick(config, values)


def bits(bricks: Mapping[str, Brick]) -> dict[str, Any]:
    """Everything of bricks, comparable bit for bit."""
    return {
        name: (brick.config, {a: (v.dtype, v.tobytes()) for a, v in brick.values.items()})
        for name, brick in bricks.items()
    }


def changed(
    directory: Path,
    target: Path,
    settings: Mapping[str, Any] = {},
    weights: Callable[[dict[str, np.ndarray]], object] = lambda found: None,
) -> Path:
    """Copies an adapter with other settings, and its tensors after `weights` has changed them."""
    shutil.copytree(directory, target)
    data = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps(data | dict(settings)))
    found = tensors(target / "adapter_model.safetensors")
    weights(found)
    (target / "adapter_model.safetensors").unlink()
    specs = {name: TensorSpec(value.shape, value.dtype) for name, value in found.items()}
    with SafetensorsWriter(target / "adapter_model.safetensors", specs) as file:
        for value in found.values():
            file.write(value)
    return target
