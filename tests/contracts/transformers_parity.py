"""Contract of every family of the transformers library: the import computes the same.

`tests/fixtures/make_transformers_fixtures.py` makes the models and says what their directories
hold. Relative errors are norms of differences over norms. Padded positions are not compared: their
values go nowhere, and the library lets them attend to padding.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modbrick.config import ModelConfig
from modbrick.convert.format import Format, Translation
from modbrick.convert.opening import open_checkpoint
from modbrick.decoder.functional import FunctionalDecoder, functional_decoder
from modbrick.decoder.output import DecoderOutput
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.formats.safetensors import read_safetensors
from modbrick.layers.cache import Cache
from modbrick.layers.positions import rope_frequencies
from modbrick.objective import Totals, objective
from modbrick.schema import to_mapping
from tests.compilation import QUICK

ROOT = Path(__file__).parents[1] / "fixtures"
Refusals = list[tuple[dict[str, Any], str]]
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
# By their definitions: quick to differentiate, and every other implementation must equal them.
PLAIN = ExecutionConfig(attention="reference", dispatch="reference")


def fixtures(family: str) -> list[Path]:
    """Directories of the family's models."""
    found = sorted(path.parent for path in (ROOT / family).glob("*/config.json"))
    assert found
    return found


@functools.cache
def expected(directory: Path) -> dict[str, np.ndarray]:
    stored = read_safetensors(directory / "expected.safetensors")
    return {name: tensor.read() for name, tensor in stored.items()}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model in float32, whatever the files hold: that is how the fixtures were computed."""

    translation: Translation
    config: ModelConfig
    decoder: FunctionalDecoder
    parameters: dict[str, Any]


@functools.cache
def imported(directory: Path, execution: ExecutionConfig = ExecutionConfig()) -> Imported:
    checkpoint = open_checkpoint(directory)
    config = checkpoint.model.replace(dtype="float32")
    paths = [info.path for info in checkpoint.correspondence.parameters]
    parameters = {path: checkpoint.read(path, dtype=np.float32) for path in paths}
    decoder = functional_decoder(config, execution)
    return Imported(checkpoint.translation, config, decoder, parameters)


def relative_error(found: jax.typing.ArrayLike, wanted: jax.typing.ArrayLike) -> float:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    distance, norm = float(np.linalg.norm(found - wanted)), float(np.linalg.norm(wanted))
    return distance / norm if norm else distance


def total_loss(
    output: DecoderOutput, labels: jax.Array, weights: dict[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The library's: mean over labels that are not -100, plus its loss of balance."""
    targets = labels[:, 1:]
    counted = (targets != -100).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        output.logits[:, :-1], jnp.maximum(targets, 0)
    )
    totals = Totals((losses * counted).sum(), counted.sum(), output.router_statistics)
    return objective(totals, jax.tree.map(jnp.float32, weights))


def errors_of(directory: Path, scratch: Path) -> dict[str, float]:
    """Imports a model, runs it forward and backward, and returns how far it is off.

    Args:
      directory: of a fixture.
      scratch: an empty directory.

    Returns:
      Relative errors by name: `logits`, `loss`, `gates`, `gradient` (the largest of any parameter
      of a layer), and `choices`, the number of tokens for which a router chose otherwise.
    """
    want, model = expected(directory), imported(directory, PLAIN)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(parameters, tokens, mask, labels):
        output = model.decoder.bind(parameters)(tokens, attention_mask=mask, capture=("routing",))
        total, _ = total_loss(output, labels, dict(model.translation.objective))
        return total, output

    mask = want["attention_mask"] == 1
    (total, output), gradients = run(model.parameters, want["input_ids"], mask, want["labels"])
    choices, gates = router_errors(model.config, output, want, mask.reshape(-1))
    return {
        "logits": relative_error(np.asarray(output.logits)[mask], want["logits"][mask]),
        "loss": relative_error(total, want["loss"]),
        "choices": choices,
        "gates": gates,
        "gradient": gradient_error(gradients, directory, scratch),
    }


def router_errors(
    config: ModelConfig, output: DecoderOutput, want: dict[str, np.ndarray], real: np.ndarray
) -> tuple[int, float]:
    """Other choices, and the largest error of the gates of a router; real tokens only."""
    others, worst, compared, first = 0, 0.0, set(), 0
    for number, segment in enumerate(config.segments):
        for sublayer in ("attention", "feed_forward"):
            routing = output.captured["routing"].get(f"segments.{number}.{sublayer}")
            for repeat in range(segment.repeats if routing is not None else 0):
                where = f"router.{first + repeat}.{sublayer}"
                indices, gates = want[f"{where}.indices"], want[f"{where}.gates"]
                found = np.asarray(routing.indices)[repeat].reshape(indices.shape)
                others += int((found != indices)[real].any(-1).sum())
                found = np.asarray(routing.gates)[repeat].reshape(gates.shape)
                error = relative_error(found[real], gates[real])
                worst = max(worst, error)
                compared |= {f"{where}.indices", f"{where}.gates"}
        first += segment.repeats
    assert compared == {name for name in want if name.startswith("router.")}
    return others, worst


def gradient_error(found: dict[str, jax.Array], directory: Path, scratch: Path) -> float:
    """The largest error of a parameter of a layer, relative to its gradient's norm.

    The gradients are stored as the weights are, so they are read as weights are. Where hardly
    anything is left of a gradient after cancellation (a single expert's gate cannot change), the
    error counts relative to a ten-thousandth of the norm of all gradients.
    """
    shutil.copy(directory / "config.json", scratch)
    shutil.copy(directory / "gradients.safetensors", scratch / "model.safetensors")
    checkpoint = open_checkpoint(scratch)
    all_wanted = {
        info.path: np.asarray(checkpoint.read(info.path), np.float64)
        for info in checkpoint.correspondence.parameters
    }
    least = 1e-4 * float(np.sqrt(sum((values**2).sum() for values in all_wanted.values())))
    errors = []
    for path, wanted in all_wanted.items():
        layers = wanted if path.startswith("segments.") else wanted[None]
        values = np.asarray(found[path], np.float64).reshape(layers.shape)
        axes = tuple(range(1, layers.ndim))
        norms = np.sqrt((layers**2).sum(axes))
        distances = np.sqrt(((values - layers) ** 2).sum(axes))
        errors.append(float((distances / np.maximum(norms, least)).max()))
    assert np.isfinite(errors).all()
    return max(errors)


def check_parity(directory: Path, scratch: Path) -> None:
    """Logits, loss, router choices and gates, and the gradient of every parameter agree."""
    errors = errors_of(directory, scratch)
    assert errors.pop("choices") == 0
    assert errors.pop("gradient") <= GRADIENT_TOLERANCE
    assert max(errors.values()) <= TOLERANCE, errors


def check_greedy_with_a_cache(directory: Path) -> None:
    """Fed token by token, with a cache, the model continues as the original does.

    This runs as anyone would run it: with the implementations that are best here.
    """
    model = imported(directory)
    wanted = expected(directory)["greedy"]
    prompt = expected(directory)["input_ids"].shape[1] // 2

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(parameters, token, cache):
        output = model.decoder.bind(parameters)(token, cache=cache)
        return output.logits.argmax(-1), output.cache

    cache = Cache.empty(model.config, *wanted.shape)
    tokens = np.array(wanted)
    for position in range(wanted.shape[1] - 1):
        token, cache = run(model.parameters, tokens[:, position : position + 1], cache)
        if position + 1 >= prompt:
            tokens[:, position + 1] = np.asarray(token)[:, 0]
    assert np.array_equal(tokens, wanted)


def config_of(family: str) -> dict[str, Any]:
    """The `config.json` of the family's first fixture."""
    config: dict[str, Any] = json.loads((fixtures(family)[0] / "config.json").read_text())
    return config


def check_config_survives(form: Format, directory: Path) -> None:
    """What is written reads back as the same model and the same losses."""
    translation = imported(directory).translation
    assert form.write_config is not None
    written = json.loads(json.dumps(form.write_config(translation)))
    dtype = {"torch_dtype": translation.model.dtype}
    assert form.read_config(written | dtype, "config.json") == translation


COMMON_REFUSALS: Refusals = [
    ({"attention_dropout": "some"}, "attention_dropout: expected"),
    ({"architectures": ["OtherForCausalLM"]}, "architectures is"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"attn_logit_softcapping": 30.0}, r"attn_logit_softcapping \(30.0\)"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "odd"),
    ({"rope_parameters": None, "rope_scaling": {"type": "longrope"}}, "'longrope'"),
    ({"rope_scaling": {"type": "linear", "factor": 3.5}}, "different things"),
    ({"rope_theta": 7.0}, "rope_theta has two values"),
    ({"num_hidden_layers": 0}, "got 0"),
    ({"rms_norm_eps": 0.0}, "epsilon must be positive"),
    ({"torch_dtype": "float8", "dtype": "float8"}, "torch_dtype 'float8'"),
    ({"hidden_size": "wide"}, "hidden_size: expected int"),
]
"""Changes of a config that no family can represent, and what is said of them."""


HEAD_REFUSALS: Refusals = [
    ({"num_attention_heads": 0}, "heads"),
    ({"num_key_value_heads": 3}, "do not divide into 3 key_value_heads"),
    ({"head_dim": 3}, "even number"),
    ({"hidden_act": "swiglu"}, "hidden_act 'swiglu' is not supported"),
    ({"hidden_size": 18, "head_dim": None}, "does not divide into"),
]
"""Those of families with ordinary heads."""

BALANCED_REFUSALS: Refusals = [
    ({"router_aux_loss_coef": -0.1, "output_router_logits": True}, "router_aux_loss_coef is -0.1"),
]
"""Those of families with the library's loss of balance."""


def check_refusals(form: Format, family: str, refusals: Refusals) -> None:
    """Each change of the config is refused by name."""
    config = config_of(family)
    form.read_config(config, "config.json")
    for change, message in refusals:
        with pytest.raises(InputError, match=message) as caught:
            form.read_config(config | change, "config.json")
        assert str(caught.value).startswith("config.json"), change


HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 0.5, -0.0, 1e308, -1e-300, math.inf, -math.inf, math.nan, 10**40,
    "", "x", [], [None], {}, {"rope_type": "yarn", "factor": 2}, ["x", 1.5],
)  # fmt: skip


def check_hostile_values(form: Format, family: str) -> None:
    """Whatever stands in a config, reading it ends in finite numbers or in a clean error."""
    for config in map(json.loads, {(d / "config.json").read_text() for d in fixtures(family)}):
        scaling = config["rope_parameters"]
        options = [*scaling, "factor", "beta_fast", "beta_slow", "attention_factor", "mscale"]
        options += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        # More layers than tensors are refused before a config is read.
        keys = config.keys() - {"num_hidden_layers"}
        changes: list[dict[str, Any]] = [{key: v} for key in sorted(keys) for v in HOSTILE]
        changes += [
            {"rope_parameters": {**scaling, **kind, key: value}}
            for kind in ({}, {"rope_type": "yarn", "factor": 2.0, "mscale_all_dim": 1.0})
            for key in options
            for value in HOSTILE
        ]
        for change in changes:
            try:
                model = form.read_config(config | change, "config.json").model
            except InputError:
                continue
            json.dumps(to_mapping(model), allow_nan=False)
            attention = model.segments[0].layer.attention
            assert attention.rope is not None
            if attention.head_width < 1000:
                frequencies = rope_frequencies(attention.rope, attention.head_width)
                assert np.isfinite(frequencies).all(), change
