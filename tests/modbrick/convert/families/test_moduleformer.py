"""What an import accepts, what it refuses by name, and that it takes every value to its place."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer
from modbrick.convert import open_checkpoint
from modbrick.convert.families.moduleformer import FORMAT, ModuleFormerConfig
from modbrick.errors import InputError
from modbrick.objective import ObjectiveConfig
from modbrick.schema import from_mapping
from tests.contracts.conversion import check_own_config, check_round_trip, check_rows

FIXTURES = Path(__file__).parents[3] / "fixtures/moduleformer"
PADDED = FIXTURES / "multihead_padded"


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def changed(
    target: Path,
    config: Mapping[str, Any] | None = None,
    drop: str | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A copy of a fixture with other settings and tensors."""
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config_of(PADDED) | dict(config or {})))
    stored = load_file(PADDED / "model.safetensors")
    if drop is not None:
        del stored[drop]
    save_file(stored | dict(tensors or {}), target / "model.safetensors")
    return target


def translated(**settings: Any) -> tuple[ModelConfig, dict[str, float]]:
    data = {"n_embd": 64, "att_hidden": 48, "n_head": 3, **settings}
    translation = FORMAT.read_config(data, "config.json")
    return translation.model, dict(translation.objective)


def test_settings_become_a_model() -> None:
    model, weights = translated(
        vocab_size=90,
        n_layer=5,
        ffd_hidden=20,
        activation_function="silu",
        gate_type="gmm",
        gating_size=7,
        n_att_experts=6,
        k_att=1,
        n_mlp_experts=9,
        k_mlp=3,
        sample_topk=1,
        aux_loss_type="switch",
        aux_loss_weight=0.5,
        block_size=10,
        history_length=6,
        initializer_range=0.3,
        layer_norm_epsilon=0.1,
        torch_dtype="bfloat16",
    )
    assert weights == {"switch": 0.5, "router_z": 0.05}
    assert from_mapping(ObjectiveConfig, weights).switch == 0.5
    (segment,) = model.segments
    attention, feed_forward = segment.layer.attention, segment.layer.feed_forward
    assert (model.vocabulary, model.width, segment.repeats, model.context) == (90, 64, 5, 16)
    assert (model.dtype, model.router_statistics, model.tied_head) == ("bfloat16", "all", False)
    assert (attention.kind, attention.heads, attention.head_width) == ("stickbreaking", 3, 16)
    assert attention.attend_current
    assert attention.rope is None
    assert (attention.key_value, attention.biases) == ("projected", ("key", "value"))
    assert (feed_forward.activation, feed_forward.hidden) == ("silu", 20)
    assert not feed_forward.gated
    assert attention.experts is not None
    assert feed_forward.experts is not None
    assert (attention.experts.count, attention.experts.top_k) == (6, 1)
    assert (feed_forward.experts.count, feed_forward.experts.top_k) == (9, 3)
    assert attention.experts.router == feed_forward.experts.router
    router = attention.experts.router
    assert (router.kind, router.hidden, router.sample_top_k, router.gates) == (
        *("gmm", 7, 1),
        "probability",
    )
    # The original reads its `layer_norm_epsilon` nowhere.
    assert {model.norm.epsilon, segment.layer.norm.epsilon} == {1e-5}
    assert model.norm.kind == "layer"


def test_keys_and_values_are_projected_unless_one_head_is_as_wide_as_the_stream() -> None:
    def key_value(**settings: Any) -> str:
        return translated(**settings)[0].layers[0].attention.key_value

    assert key_value(n_head=1, att_hidden=64) == "identity"
    assert key_value(n_head=2, att_hidden=64) == "projected"
    assert key_value(n_head=1, att_hidden=32) == "projected"


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("swish", "silu"),
        ("relu", "relu"),
        ("relu2", "relu_squared"),
        ("tanh", "tanh"),
        ("linear", "identity"),
    ],
)
def test_activations(name: str, activation: str) -> None:
    assert translated(activation_function=name)[0].layers[0].feed_forward.activation == activation


def test_router_losses() -> None:
    assert translated(aux_loss_type="mi", aux_loss_weight=0.2)[1] == {"load_balancing": 0.2}
    assert translated(aux_loss_type="switch")[1] == {}
    assert translated(aux_loss_weight=0)[1] == {}


def test_defaults_are_those_of_the_original() -> None:
    model = FORMAT.read_config({}, "config.json").model
    assert model == FORMAT.read_config(dataclasses.asdict(ModuleFormerConfig()), "").model
    assert (len(model.layers), model.width, model.vocabulary) == (24, 1024, 50295)


def test_dropout_is_of_training_only() -> None:
    dropped = FORMAT.read_config({"resid_pdrop": 0.1, "embd_pdrop": 0.2, "moe_pdrop": 0.3}, "")
    assert dropped == FORMAT.read_config({}, "")


def test_aliases() -> None:
    data = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    model = FORMAT.read_config(data, "config.json").model
    assert (model.width, model.layers[0].attention.heads, len(model.layers)) == (64, 2, 3)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another head": ({"architectures": ["ModuleFormerForSequenceClassification"]}, "architectures"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "pruned": ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    "activation": ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu'"),
    "router": ({"gate_type": "topk"}, "gate_type 'topk'"),
    "loss": ({"aux_loss_type": "sparse"}, "aux_loss_type 'sparse'"),
    "loss weight": ({"aux_loss_weight": -0.1}, "aux_loss_weight is -0.1"),
    "loss weight no number": ({"aux_loss_weight": float("nan")}, "aux_loss_weight is nan"),
    "dtype": ({"torch_dtype": "float8"}, "torch_dtype 'float8'"),
    "heads": ({"n_head": 5}, "does not divide into 5 heads"),
    "no heads": ({"n_head": 0}, "does not divide into 0 heads"),
    "too many experts": ({"k_att": 33}, "top_k must be between 1"),
    "no experts": ({"k_mlp": 0}, "top_k must be between 1"),
    "samples": ({"sample_topk": 3}, "sample_top_k"),
    "no layers": ({"n_layer": 0}, "repeats must be at least 1"),
    "no number": ({"n_embd": "64"}, "n_embd: expected int"),
    "nothing": ({"k_att": None}, "k_att: expected int"),
    "misspelt": ({"k_atts": 2}, "unknown key 'k_atts'; did you mean 'k_att'"),
    "contradictory": ({"hidden_size": 32}, "hidden_size and n_embd are the same thing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_refused(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(InputError, match=f"^config.json.*{message}"):
        translated(**settings)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("vocab_size", "the vocabulary"),
        ("n_embd", "the width"),
        ("ffd_hidden", "the hidden width"),
        ("n_att_experts", "the number of attention experts"),
        ("n_layer", "n_layer"),
    ],
)
def test_sizes_beyond_the_files_allocate_nothing(tmp_path: Path, name: str, meaning: str) -> None:
    with pytest.raises(InputError, match=f"{meaning} is 1000000000000000,"):
        open_checkpoint(changed(tmp_path / "a", {name: 10**15}))


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    layer = "transformer.h.1"
    path = changed(
        tmp_path / "a",
        drop=f"{layer}.ln_2.bias",
        tensors={
            f"{layer}.ln_1.bias": np.zeros(41, np.float32),
            f"{layer}.ln_1.weight": np.zeros(40, np.int32),
            f"{layer}.attn.causal_mask": np.zeros(3, np.float32),
            "transformer.h.2.ln_1.bias": np.zeros(40, np.float32),
        },
    )
    with pytest.raises(InputError, match="5 tensors do not fit") as caught:
        open_checkpoint(path)
    for problem in (
        f"{layer}.ln_2.bias is missing",
        f"{layer}.ln_1.bias has shape [41], expected [40]",
        f"{layer}.ln_1.weight has dtype int32",
        f"{layer}.attn.causal_mask is not expected",
        "transformer.h.2.ln_1.bias is not expected",
    ):
        assert problem in str(caught.value)


def test_another_gate_type_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expert_centroids is missing.*w_gate\.0\.weight is not"):
        open_checkpoint(changed(tmp_path / "a", {"gate_type": "gmm"}))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_widens_exactly(tmp_path: Path, dtype: type) -> None:
    stored = load_file(PADDED / "model.safetensors")
    halves: dict[str, np.ndarray] = {name: value.astype(dtype) for name, value in stored.items()}
    checkpoint = open_checkpoint(changed(tmp_path / "a", tensors=halves))
    path = "segments.0.attention.key.weight"
    assert checkpoint.read(path).dtype == dtype
    found = checkpoint.read(path, dtype=np.float32)
    for layer, value in enumerate(found):
        name = f"transformer.h.{layer}.attn.k_proj.weight"
        assert np.array_equal(value.T, halves[name].astype(np.float32))


@pytest.mark.parametrize("kept", ["both", "embedding", "head", "different"])
def test_tied_heads(tmp_path: Path, kept: str) -> None:
    embedding, head = "transformer.wte.weight", "lm_head.weight"
    values = load_file(PADDED / "model.safetensors")[embedding]
    tensors = {
        "both": {head: values},
        "embedding": {},
        "head": {head: values},
        "different": {head: values + np.float32(1e-3)},
    }[kept]
    drop = {"embedding": head, "head": embedding}.get(kept)
    path = changed(tmp_path / "a", {"tie_word_embeddings": True}, drop, tensors)
    if kept == "different":
        with pytest.raises(InputError, match="differ"):
            open_checkpoint(path)
        return
    checkpoint = open_checkpoint(path)
    assert checkpoint.model.tied_head
    assert "head.weight" not in checkpoint.correspondence.parameters
    assert np.array_equal(checkpoint.read("embedding"), values)


def test_shards_may_be_in_any_order(tmp_path: Path) -> None:
    # Tensors of one stacked parameter lie in two files; swapping the files' names changes nothing.
    source = FIXTURES / "molm_like"
    swapped = tmp_path / "a"
    shutil.copytree(source, swapped)
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    (swapped / names[0]).rename(swapped / "other")
    (swapped / names[1]).rename(swapped / names[0])
    (swapped / "other").rename(swapped / names[1])
    index = swapped / "pytorch_model.bin.index.json"
    text = index.read_text()
    for old, new in ((names[0], "first"), (names[1], names[0]), ("first", names[1])):
        text = text.replace(old, new)
    index.write_text(text)
    wanted, found = open_checkpoint(source), open_checkpoint(swapped)
    for info in wanted.correspondence.parameters:
        assert np.array_equal(found.read(info.path), wanted.read(info.path)), info.path


each_fixture = pytest.mark.parametrize(
    "directory", sorted(p for p in FIXTURES.iterdir() if p.is_dir()), ids=lambda path: path.name
)


@each_fixture
def test_rows_cover_every_value_once(directory: Path) -> None:
    check_rows(FORMAT, open_checkpoint(directory).model)


@each_fixture
def test_round_trips_are_byte_equal(directory: Path, tmp_path: Path) -> None:
    check_round_trip(directory, FORMAT, tmp_path)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, "mixed"])
def test_round_trips_keep_the_dtype_of_each_tensor(tmp_path: Path, dtype: Any) -> None:
    stored = load_file(PADDED / "model.safetensors")
    dtypes: list[Any] = [np.float32, np.float16, jnp.bfloat16] if dtype == "mixed" else [dtype]
    tensors = {
        name: value.astype(dtypes[number % len(dtypes)])
        for number, (name, value) in enumerate(stored.items())
    }
    check_round_trip(changed(tmp_path / "source", tensors=tensors), FORMAT, tmp_path)


@pytest.mark.parametrize("router", ["linear", "mlp", "gmm"])
@pytest.mark.parametrize("heads", [1, 2])
def test_models_made_here_have_a_config(router: str, heads: int) -> None:
    model = moduleformer(
        vocabulary=50,
        width=16,
        layers=3,
        heads=heads,
        attention_width=16,
        feed_forward_width=24,
        attention_experts=4,
        feed_forward_experts=5,
        top_k=2,
        router=router,  # type: ignore[arg-type]
        router_width=9,
    )
    check_own_config(FORMAT, model)
    check_rows(FORMAT, model)
