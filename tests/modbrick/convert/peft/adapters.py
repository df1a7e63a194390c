"""The models and adapters that `tests/fixtures/peft/make_fixtures.py` has made."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from modbrick.bricks import Brick, BrickConfig, Plugged, plugged
from modbrick.bricks.folding import folded
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
        "lora_bias", "ia3", "ia3_feed_forward", "adalora", "vera", "dora", "bias",
        "modules_to_save", "embedding", "head", "norms", "biases", "saved_layers",
        "dora_patterns", "copies", "prefix", "prompt", "p_tuning",
    ),
    "mixtral": ("lora", "ia3", "experts", "one_weight"),
    "granitemoe": (
        "lora", "rslora", "experts", "embedding", "head", "outermost", "saved_embedding",
        "saved_head", "ranks", "prompt", "prefix",
    ),
    "jetmoe": ("lora", "lora_bias", "ia3", "dora", "prefix"),
}  # fmt: skip
ADAPTERS = [ROOT / family / name for family, names in READ.items() for name in names]
# One or two of each kind, and what cannot be folded: at a tied head, biases without one
# of the base, and virtual tokens.
PLUGGED = {
    "llama": (
        "lora_bias", "ia3_feed_forward", "dora", "embedding", "head", "norms", "prefix", "prompt",
        "p_tuning",
    ),
    "mixtral": ("experts",),
    "granitemoe": (
        "embedding", "head", "outermost", "saved_embedding", "saved_head", "prompt", "prefix",
    ),
    "jetmoe": ("lora_bias", "prefix"),
}  # fmt: skip
# Those that become another kind are read only.
WRITTEN = [path for path in ADAPTERS if path.name not in ("adalora", "vera", "p_tuning")]
# What is taken off, multiplied or turned, and back again, is rounded.
ROUNDED = (
    "dora", "dora_patterns", "bias", "biases", "norms", "copies", "modules_to_save", "saved_layers",
    "saved_embedding", "saved_head", "outermost", "prefix",
)  # fmt: skip


def label(directory: Path) -> str:
    return f"{directory.parent.name}/{directory.name}"


@functools.cache
def model_of(family: str) -> ModelConfig:
    return open_checkpoint(ROOT / family / "model").model


@functools.cache
def parameters_of(family: str) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(ROOT / family / "model")
    return {info.path: checkpoint.read(info.path) for info in checkpoint.correspondence.parameters}


def weights_of(family: str) -> Callable[[str], np.ndarray]:
    return lambda path: parameters_of(family)[path]


@functools.cache
def expected(directory: Path) -> dict[str, np.ndarray]:
    return tensors(directory / "expected.safetensors")


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in read_safetensors(path).items()}


@functools.cache
def logits(family: str) -> dict[Path, np.ndarray]:
    """Logits of a family's model with each adapter, for the tokens.

    Some are plugged in, all in one batch, the others are folded into the weights.
    """
    bricks = {path: read(path, path.name) for path in (ROOT / family / n for n in READ[family])}
    together = [path for path in bricks if path.name in PLUGGED[family]]
    runs = run_together(family, [bricks[path] for path in together])
    found = {path: run_folded(family, of) for path, of in bricks.items() if path not in together}
    return found | dict(zip(together, runs, strict=True))


def run_folded(family: str, bricks: Mapping[str, Brick]) -> np.ndarray:
    """Logits of a family's model into which bricks are folded."""
    parameters = parameters_of(family)
    parameters = parameters | folded(model_of(family), parameters, bricks)
    tokens = expected(ROOT / family / "model")["tokens"]
    return np.asarray(_plain(family)(parameters, tokens))


@functools.cache
def _plain(family: str) -> Callable[[Mapping[str, ArrayLike], ArrayLike], Array]:
    decoder = functional_decoder(model_of(family))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(parameters: Parameters, tokens: Array) -> Array:
        return decoder.bind(parameters)(tokens).logits

    return run


def read(directory: Path, name: str = "default", family: str = "") -> dict[str, Brick]:
    family = family or directory.parent.name
    return read_adapter(directory, model_of(family), name=name, weights=weights_of(family))


def run_together(family: str, adapters: Sequence[Mapping[str, Brick]]) -> list[np.ndarray]:
    """Logits of a family's model with each of several adapters, in one batch."""
    model = model_of(family)
    configs = {name: b.config for of in adapters for name, b in of.items()}
    values: dict[str, Array] = {}
    for of in adapters:
        for name, brick in of.items():
            values |= brick.parameters(name, model)
    plug = plugged(model, configs, values)
    tokens = expected(ROOT / family / "model")["tokens"]
    sets = [name for of in adapters for name in ["+".join(of)] * len(tokens)]
    ids = plug.ids(sets) if len(adapters) > 1 else None
    decoder = functional_decoder(model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(parameters: Parameters, tokens: Array, plug: Plugged, ids: Array | None) -> Array:
        return decoder.bind(parameters)(tokens, bricks=plug, brick_ids=ids).logits

    found = run(parameters_of(family), np.tile(tokens, (len(adapters), 1)), plug, ids)
    return np.split(np.asarray(found), len(adapters))


def random_brick(config: BrickConfig, model: ModelConfig, seed: int = 0) -> Brick:
    """A brick whose values are all drawn."""
    generator = np.random.default_rng(seed)
    values = {
        f"{address}.{leaf}": generator.standard_normal(info.shape).astype(np.float32)
        for place, leaf, info in leaves(model, config)
        for address in [place.address(layer) for layer in place.layers] or [place.address()]
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
