"""Imported models compute what the original computes, forward, backward and generating.

Relative errors are norms of differences over norms. The fixtures' `make_fixtures.py` says what they
hold.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick import convert, load_model
from modbrick.config import ModelConfig
from modbrick.decoder.functional import FunctionalDecoder, functional_decoder, parameters_of
from modbrick.decoder.output import DecoderOutput
from modbrick.formats.safetensors import read_safetensors
from modbrick.formats.strict_json import read_object
from modbrick.layers.cache import Cache
from modbrick.next_token import token_losses
from modbrick.objective import ObjectiveConfig, Totals, objective
from tests.compilation import QUICK

FIXTURES = sorted(
    path.parent
    for path in (Path(__file__).parents[3] / "fixtures/moduleformer").glob("*/config.json")
)
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
# Of a router's loss: a difference of entropies of up to log E, which float32 resolves to 2e-7 in
# both programs; the original also adds 1e-8 to the argument of a logarithm, worth E times that.
RESOLUTION = 5e-7

each_fixture = pytest.mark.parametrize("directory", FIXTURES, ids=lambda path: path.name)
# What is in one of these only, is compared forward and backward by `make verify`: for them all, the
# greedy continuation is compared here.
RARE = ("mlp_top1_right_padded", "multihead_padded")
usual_fixtures = pytest.mark.parametrize(
    "directory",
    [
        pytest.param(path, id=path.name, marks=[pytest.mark.verify] if path.name in RARE else [])
        for path in FIXTURES
    ],
)


@functools.cache
def expected(directory: Path) -> dict[str, np.ndarray]:
    stored = read_safetensors(directory / "expected.safetensors")
    return {name: tensor.read() for name, tensor in stored.items()}


def imported(directory: Path) -> tuple[ModelConfig, dict[str, float], FunctionalDecoder, dict]:
    """The model in float32, whatever the files hold: that is how the fixtures were computed."""
    checkpoint = convert.open_checkpoint(directory)
    config = checkpoint.model.replace(dtype="float32")
    paths = [info.path for info in checkpoint.correspondence.parameters]
    parameters = {path: checkpoint.read(path, dtype=np.float32) for path in paths}
    return config, dict(checkpoint.translation.objective), functional_decoder(config), parameters


def relative_error(found: jax.typing.ArrayLike, wanted: np.ndarray) -> float:
    found = np.asarray(found)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    distance = float(np.linalg.norm((found - wanted).astype(np.float64)))
    norm = float(np.linalg.norm(wanted.astype(np.float64)))
    return distance / norm if norm else distance


def total_loss(
    output: DecoderOutput, labels: jax.Array, weights: dict[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The original's: mean over labels that are not -100, plus the weighted router losses."""
    targets = labels[:, 1:]
    counted = (targets != -100).astype(jnp.float32)
    losses = token_losses(output.logits[:, :-1], jnp.maximum(targets, 0))
    totals = Totals((losses * counted).sum(), counted.sum(), output.router_statistics)
    return objective(totals, jax.tree.map(jnp.float32, weights))


@usual_fixtures
def test_computes_what_the_original_does(directory: Path) -> None:
    want = expected(directory)
    config, weights, decoder, parameters = imported(directory)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(parameters, tokens, mask, labels):
        output = decoder.bind(parameters)(
            tokens,
            attention_mask=mask,
            capture=("hidden_states", "attention_weights", "routing"),
        )
        total, parts = total_loss(output, labels, weights)
        return total, (output, parts)

    mask = want["attention_mask"] == 1
    (total, (output, parts)), gradients = run(parameters, want["input_ids"], mask, want["labels"])

    assert relative_error(output.logits, want["logits"]) <= TOLERANCE
    assert relative_error(total, want["loss"]) <= TOLERANCE
    compare_hidden_states(output, want)
    compare_attention_weights(output, want, config)
    compare_routers(output, want, len(config.layers), directory)
    compare_gradients(gradients, want, directory)
    if weights:
        weighted = sum(weights[name] * float(parts[name]) for name in weights)
        weight = read_object(directory / "config.json")["aux_loss_weight"]
        resolution = weight * RESOLUTION * 2 * len(config.layers)
        wanted = weight * float(want["aux_loss"])
        assert weighted == pytest.approx(wanted, rel=TOLERANCE, abs=resolution)
    ObjectiveConfig(**weights)

    # The greedy continuation, by running everything again for each token; tokens that are still to
    # come stand as zeros behind it.
    greedy = want["greedy"]
    tokens, everything = np.zeros_like(want["input_ids"]), np.ones_like(mask)
    for position in range(greedy.shape[1]):
        if position < tokens.shape[1] // 2:
            tokens[:, position] = want["input_ids"][:, position]
        else:
            (_, (output, _)), _ = run(parameters, tokens, everything, want["labels"])
            tokens[:, position] = output.logits[:, position - 1].argmax(-1)
    assert np.array_equal(tokens[:, : greedy.shape[1]], greedy)


def compare_hidden_states(output: DecoderOutput, want: dict[str, np.ndarray]) -> None:
    """The embedding, the stream after each layer, the last one after the final norm."""
    hidden = [*output.captured["hidden_states"][:-1], output.hidden]
    assert sum(name.startswith("hidden_states.") for name in want) == len(hidden)
    for index, states in enumerate(hidden):
        assert relative_error(states, want[f"hidden_states.{index}"]) <= TOLERANCE, index


def compare_attention_weights(
    output: DecoderOutput, want: dict[str, np.ndarray], config: ModelConfig
) -> None:
    # Here heads that share a key stand together; there, heads of the same slot.
    attention = config.layers[0].attention
    found = np.asarray(output.captured["attention_weights"]["0"])
    found = found.reshape(*found.shape[:2], attention.heads, -1, *found.shape[3:]).swapaxes(2, 3)
    assert attention.experts is not None
    assert found.shape[2] == attention.experts.top_k
    for index, weights in enumerate(found):
        assert relative_error(weights, want[f"attentions.{index}"]) <= TOLERANCE, index


def compare_routers(
    output: DecoderOutput, want: dict[str, np.ndarray], layers: int, directory: Path
) -> None:
    losses = []
    for name, sublayer in (("attn.q_proj", "attention"), ("mlpf", "feed_forward")):
        routing = output.captured["routing"][f"segments.0.{sublayer}"]
        statistics = output.router_statistics[f"segments.0.{sublayer}"]
        for index in range(layers):
            where = f"router.transformer.h.{index}.{name}.gate"
            # Rows and positions of a batch are one axis in the original.
            indices, gates = (want[f"{where}.{x}"] for x in ("indices", "gates"))
            chosen = routing.indices[index]
            assert np.array_equal(chosen, indices.reshape(chosen.shape)), where
            gates = gates.reshape(chosen.shape)
            assert relative_error(routing.gates[index], gates) <= TOLERANCE, where
            one = jax.tree.map(lambda x, index=index: x[index : index + 1], statistics)
            loss = router_loss(one, directory)
            wanted = float(want[f"{where}.loss"])
            assert loss == pytest.approx(wanted, rel=TOLERANCE, abs=RESOLUTION), where
            losses.append(loss)
    resolution = RESOLUTION * len(losses)
    assert sum(losses) == pytest.approx(float(want["aux_loss"]), rel=TOLERANCE, abs=resolution)


def router_loss(statistics, directory: Path) -> float:
    """One router's loss as the original defines it for the fixture, whatever its weight."""
    kind = read_object(directory / "config.json")["aux_loss_type"]
    weights = {"load_balancing": 1.0} if kind == "mi" else {"switch": 1.0, "router_z": 0.1}
    nothing = Totals(jnp.float32(0), jnp.float32(1), {"router": statistics})
    return float(objective(nothing, jax.tree.map(jnp.float32, weights))[0])


def compare_gradients(
    found: dict[str, jax.Array], want: dict[str, np.ndarray], directory: Path
) -> None:
    errors = {}
    for name, place in convert.open_checkpoint(directory).correspondence.places.items():
        values = [np.asarray(found[part.path][part.index]) for part in place.parts]
        errors[name] = relative_error(place.theirs(values), want[f"grad.{name}"])
    assert {f"grad.{name}" for name in errors} == {k for k in want if k.startswith("grad.")}
    too_large = {name: error for name, error in errors.items() if error > GRADIENT_TOLERANCE}
    assert not too_large


@each_fixture
def test_greedy_continuation_with_a_cache(directory: Path) -> None:
    want = expected(directory)
    config, _, decoder, parameters = imported(directory)
    wanted = want["greedy"]
    prompt = want["input_ids"].shape[1] // 2
    cache = Cache.empty(config, *wanted.shape)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(parameters, token, cache):
        output = decoder.bind(parameters)(token, cache=cache)
        return output.logits.argmax(-1), output.cache

    tokens = np.zeros_like(wanted)
    token = want["input_ids"][:, :1]
    for position in range(wanted.shape[1]):
        tokens[:, position : position + 1] = token
        token, cache = run(parameters, token, cache)
        if position + 1 < prompt:
            token = want["input_ids"][:, position + 1 : position + 2]
    assert np.array_equal(tokens, wanted)


@each_fixture
def test_load_returns_a_decoder_with_the_weights(directory: Path) -> None:
    model = load_model(directory)
    checkpoint = convert.open_checkpoint(directory)
    assert model.config == checkpoint.model
    found = parameters_of(model)
    assert found.keys() == {info.path for info in checkpoint.correspondence.parameters}
    for path, value in found.items():
        assert value.dtype == checkpoint.dtype(path), path
        assert np.array_equal(value, checkpoint.read(path)), path
