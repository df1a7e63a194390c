"""Adapters are read exactly, or refused by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import IA3, Bias, BrickConfig, DoRA, LoRA, Prefix
from modbrick.convert.peft import read_adapter
from modbrick.convert.peft.family import PREFIX
from modbrick.convert.peft.kinds import virtual_tokens
from modbrick.convert.peft.reading import KINDS
from modbrick.errors import InputError
from tests.contracts.transformers_parity import HOSTILE, relative_error
from tests.modbrick.convert.peft.adapters import (
    ADAPTERS,
    ROOT,
    bits,
    changed,
    expected,
    label,
    logits,
    read,
    tensors,
    weights_of,
)
from tests.modbrick.convert.peft.adapters import model_of as model

LORA = ROOT / "llama" / "lora"
QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("directory", ADAPTERS, ids=label)
def test_a_model_computes_the_same_with_the_bricks(directory: Path) -> None:
    family = directory.parent.name
    want = expected(directory)["logits"]
    base = expected(ROOT / family / "model")["logits"]
    assert relative_error(want, base) > 0.1
    assert relative_error(logits(family)[directory], want) <= 1e-5


def test_one_brick_has_one_rank_and_one_scale() -> None:
    bricks = read_adapter(ROOT / "llama" / "patterns", model("llama"), name="german")
    assert {name: brick.config.settings for name, brick in bricks.items()} == {
        "german": LoRA(3, 5.0),
        "german-r2": LoRA(2, 5.0),
        "german-r5": LoRA(5, 5.0),
        "german-a7": LoRA(3, 7.0),
        "german-a0_5": LoRA(3, 0.5),
    }
    assert bricks["german-r2"].config.at == ("layer.*.attention.key",)
    assert bricks["german-r5"].config.at == ("layer.1.feed_forward.gate", "layer.1.feed_forward.up")
    assert bricks["german-a7"].config.at == ("layer.0.attention.query",)


def test_a_usual_rank_that_no_module_has_names_no_brick(tmp_path: Path) -> None:
    path = changed(LORA, tmp_path / "a", {"r": 9, "rank_pattern": {".*": 3}})
    assert read_adapter(path, model("llama")).keys() == {"default"}
    path = changed(LORA, tmp_path / "b", {"alpha_pattern": {"k_proj": 2, ".*": 1.5}})
    assert read_adapter(path, model("llama")).keys() == {"default", "default-a2"}


def test_scales_and_biases() -> None:
    stable = read_adapter(ROOT / "llama" / "rslora_patterns", model("llama"))
    assert stable["default"].config.settings == LoRA(3, 5.0, "root")
    assert stable["default-r2"].config.settings == LoRA(2, 5.0, "root")
    biased = read_adapter(ROOT / "llama" / "lora_bias", model("llama"))
    assert biased["default-bias"].config.settings == Bias(5 / 3)
    assert biased["default-r2-bias"].config.settings == Bias(2.5)


def test_low_rank_updates_of_other_kinds_become_lora() -> None:
    pruned = read_adapter(ROOT / "llama" / "adalora", model("llama"))
    scales = {
        name: brick.config.settings.scale
        for name, brick in pruned.items()
        if isinstance(brick.config.settings, LoRA)
    }
    assert pruned.keys() == {"default", "default-r3", "default-r1"}
    assert scales == pytest.approx(dict.fromkeys(pruned, 6 / (4 + 1e-5)), rel=1e-12)
    (vectors,) = read_adapter(ROOT / "llama" / "vera", model("llama")).values()
    assert vectors.config.settings == LoRA(5)


def test_a_module_of_which_no_singular_value_is_left_has_no_brick(tmp_path: Path) -> None:
    def prune(found: dict[str, np.ndarray]) -> None:
        for end, shape in ((".lora_A", (0, 16)), (".lora_B", (16, 0)), (".lora_E", (0, 1))):
            found[QUERY + end] = np.zeros(shape, np.float32)

    kept = {"model.layers.0.self_attn.q_proj.lora_E": [False] * 4}
    # Of the other module that was pruned all are given again.
    kept["model.layers.1.self_attn.k_proj.lora_E"] = [True, False, False, False]
    path = changed(ROOT / "llama" / "adalora", tmp_path / "a", {"rank_pattern": kept}, prune)
    bricks = read_adapter(path, model("llama"))
    assert not any("layer.0.attention.query" in brick.config.at for brick in bricks.values())


def test_factors_of_inputs_are_at_the_hidden_layer() -> None:
    (brick,) = read_adapter(ROOT / "llama" / "ia3_feed_forward", model("llama")).values()
    assert brick.config.settings == IA3()
    assert "layer.*.feed_forward.hidden" in brick.config.at
    # The library takes the last map of a feed-forward for such a one, if the settings do not say.
    (fused,) = read_adapter(ROOT / "jetmoe" / "ia3", model("jetmoe")).values()
    assert fused.config.at == ("layer.*.attention.key", "layer.*.attention.value")


def test_feed_forward_modules_that_are_not_named_are_those_of_the_library(tmp_path: Path) -> None:
    directory = ROOT / "llama" / "ia3_feed_forward"
    path = changed(directory, tmp_path / "a", {"feedforward_modules": None})
    (one,), (other,) = (read_adapter(p, model("llama")).values() for p in (path, directory))
    assert one.config == other.config


def test_values_are_float32() -> None:
    for brick in read_adapter(ROOT / "llama" / "bfloat16", model("llama")).values():
        assert {value.dtype for value in brick.values.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "kind",
    ["LOKR", "OFT", "BOFT", "FOURIERFT", "VBLORA", "POLY", "CPT", "XLORA", "TRAINABLE_TOKENS"],
)
def test_what_has_no_kind_here_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'LOHA' is not read; what is: LORA, ADALORA, .*P_TUNING"):
        read(ROOT / "llama" / "loha")
    path = changed(LORA, tmp_path / "a", {"peft_type": kind})
    with pytest.raises(InputError, match=f"'{kind}' is not read"):
        read(path, family="llama")


def test_keys_of_a_prefix_are_turned_back() -> None:
    (brick,) = read(ROOT / "llama" / "prefix").values()
    assert brick.config == BrickConfig(("layer.*.attention.memory",), Prefix(3))
    rows = tensors(ROOT / "llama" / "prefix" / "adapter_model.safetensors")["prompt_embeddings"]
    stored = rows.reshape(3, 2, 2, 2, 4)  # tokens, layers, keys and values, heads, width
    values = brick.values["layer.1.attention.memory.values"]
    assert np.array_equal(values, stored[:, 1, 1].reshape(3, -1))
    keys = brick.values["layer.1.attention.memory.keys"].reshape(3, 2, 4)
    (segment,) = model("llama").segments
    rope = segment.layer.attention.rope
    assert rope is not None
    angles = 3 * rope.base ** -(np.arange(2) / 2)
    first, second = keys[..., :2], keys[..., 2:]
    again = np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(again, stored[:, 1, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("prefix", {"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
        ("prompt", {"num_virtual_tokens": None}, "num_virtual_tokens: expected"),
        ("prefix", {"num_virtual_tokens": 1 << 40}, r"has shape \[3, 32\], not \[1099"),
        ("prefix", {"token_dim": 16, "num_layers": 3}, "token_dim is 16, not 8, num_layers is 3"),
        ("prompt", {"token_dim": 8}, "not for this model: token_dim is 8, not 16"),
        ("p_tuning", {"num_transformer_submodules": 2}, "num_transformer_submodules is 2, not 1"),
        ("prompt", {"modules_to_save": ["lm_head"]}, "not supported: modules_to_save"),
        ("prefix", {"target_modules": ["q_proj"]}, "not supported: target_modules"),
    ],
)
def test_virtual_tokens_that_do_not_fit_are_refused(
    name: str, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(changed(ROOT / "llama" / name, tmp_path / "a", settings), family="llama")


NEEDED = {
    "dora": "model.layers.0.self_attn.q_proj.weight",
    "bias": "model.layers.0.self_attn.q_proj.bias",
    "norms": "model.layers.0.input_layernorm.weight",
    "modules_to_save": "lm_head.weight",
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
}


@pytest.mark.parametrize("name", NEEDED)
def test_weights_of_the_base_that_are_needed_and_not_there_are_named(name: str) -> None:
    with pytest.raises(
        InputError, match=f"{name}/.*: the weights of the base are needed, for {NEEDED[name]}"
    ):
        read_adapter(ROOT / "llama" / name, model("llama"))


def test_magnitudes_are_relative_to_the_base() -> None:
    (brick,) = read(ROOT / "llama" / "dora").values()
    assert brick.config.settings == DoRA(3, 5.0)
    stored = tensors(ROOT / "llama" / "dora" / "adapter_model.safetensors")
    weight = tensors(ROOT / "llama" / "model" / "model.safetensors")[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    found = brick.values["layer.0.attention.query.magnitude"] * np.linalg.norm(weight, axis=1)
    np.testing.assert_allclose(found, stored[f"{QUERY}.lora_magnitude_vector"], rtol=1e-6)


def test_a_row_of_zeros_has_no_magnitude() -> None:
    def weights(path: str) -> np.ndarray:
        values = weights_of("llama")(path).copy()
        if path.endswith("query.weight"):
            values[1, :, 2] = 0
        return values

    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj: 1 rows .* are zero"):
        read_adapter(ROOT / "llama" / "dora", model("llama"), weights=weights)


def test_the_base_may_be_held_in_bfloat16() -> None:
    def weights(path: str) -> np.ndarray:
        return weights_of("llama")(path).astype(jnp.bfloat16)

    (brick,) = read_adapter(ROOT / "llama" / "dora", model("llama"), weights=weights).values()
    exact = read(ROOT / "llama" / "dora")["default"].values
    assert brick.values.keys() == exact.keys()
    for address, values in exact.items():
        assert brick.values[address].dtype == np.float32
        np.testing.assert_allclose(brick.values[address], values, rtol=1e-2)


def test_copies_that_are_the_base_make_no_brick(tmp_path: Path) -> None:
    base = tensors(ROOT / "llama" / "model" / "model.safetensors")

    def same(found: dict[str, np.ndarray]) -> None:
        for name in found:
            own = name.removeprefix(PREFIX).replace(".base_layer", "")
            found[name] = base.get(own.replace(".ln_tuning_layers", ""), found[name])

    for name in ("modules_to_save", "saved_layers", "biases"):
        path = changed(ROOT / "llama" / name, tmp_path / name, weights=same)
        assert read(path, family="llama").keys() == {"default"}
    path = changed(ROOT / "llama" / "norms", tmp_path / "norms", weights=same)
    with pytest.raises(InputError, match="the adapter changes nothing in this base"):
        read(path, family="llama")


def test_copies_of_the_base_beside_an_adapter_are_those_of_the_base(tmp_path: Path) -> None:
    def halve(name: str, found: dict[str, np.ndarray]) -> None:
        found[name] = found[name].astype(np.float16)

    def remove(name: str, found: dict[str, np.ndarray]) -> None:
        del found[name]

    def double(name: str, found: dict[str, np.ndarray]) -> None:
        found[name] = 2 * found[name]

    for name, module in (("embedding", "model.embed_tokens"), ("head", "lm_head")):
        stored = f"{PREFIX}{module}.base_layer.weight"
        paths = {
            change: changed(
                ROOT / "llama" / name,
                tmp_path / name / change.__name__,
                weights=functools.partial(change, stored),
            )
            for change in (halve, remove, double)
        }
        for change in (halve, remove):
            assert read(paths[change], family="llama").keys() == {"default"}
        with pytest.raises(InputError, match=f"{stored} is not the base's {module}.weight"):
            read(paths[double], family="llama")


def test_an_embedding_that_was_saved_without_being_adapted(tmp_path: Path) -> None:
    """The library stores it where the vocabulary grew, or on demand."""
    base = tensors(ROOT / "llama" / "model" / "model.safetensors")
    names = ("model.embed_tokens.weight", "lm_head.weight")
    same = {PREFIX + name: base[name] for name in names}
    path = changed(LORA, tmp_path / "same", weights=lambda found: found.update(same))
    assert bits(read(path, family="llama")) == bits(read(LORA))
    grown = {name: np.concatenate([value, value[:1]]) for name, value in same.items()}
    path = changed(LORA, tmp_path / "grown", weights=lambda found: found.update(grown))
    with pytest.raises(InputError, match=r"lm_head.weight has shape \[41, 16\], not \[40, 16\]"):
        read(path, family="llama")


def test_pairs_of_experts() -> None:
    bricks = read(ROOT / "mixtral" / "experts")
    assert bricks["default-experts"].config.settings == LoRA(3, 5.0, pairs="expert")
    values = bricks["default-experts"].values
    shared = [values[f"layer.0.feed_forward.{site}.down"] for site in ("gate", "up")]
    assert np.array_equal(shared[0], shared[1])
    stored = tensors(ROOT / "mixtral" / "experts" / "adapter_model.safetensors")
    down = stored[f"{PREFIX}model.layers.0.mlp.experts.base_layer.lora_A.weight"]
    assert np.array_equal(shared[0][1], down[3:6].T)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["mlp.gate.weight"]}, "match nothing: 'mlp.gate.weight'"),
        ({"use_dora": True}, "use_dora is for linear maps only, not for .*gate_up_proj"),
        ({"lora_bias": True}, "lora_bias is for linear maps only, not for .*gate_up_proj"),
        ({"target_modules": None}, "target_modules names nothing"),
        ({"target_modules": ["experts.down_proj"]}, "match nothing: 'experts.down_proj'"),
        ({"modules_to_save": ["experts"]}, "a bank of experts, which only target_parameters"),
    ],
)
def test_banks_that_cannot_be_adapted_so_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(changed(ROOT / "mixtral" / "experts", tmp_path / "a", settings), family="mixtral")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["nope"]}, "modules_to_save that match nothing: 'nope'"),
        ({"modules_to_save": [""]}, "modules_to_save has an empty name"),
        ({"modules_to_save": ["_proj"]}, r"modules_to_save .*q_proj is adapted, too"),
        ({"modules_to_save": ["mlp"]}, r"mlp.gate_proj.weight is missing"),
        ({"target_modules": ["q_proj", "norm"]}, "model.norm: no linear map"),
        ({"lora_bias": True, "use_dora": True}, "lora_bias and use_dora exclude each other"),
        (
            {"target_modules": ["embed_tokens"], "use_dora": True},
            "use_dora is for linear maps only, not for model.embed_tokens",
        ),
        ({"ensure_weight_tying": True}, r"not supported: ensure_weight_tying \(True\)"),
    ],
)
def test_copies_that_do_not_fit_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = changed(ROOT / "llama" / "modules_to_save", tmp_path / "a", settings)
    with pytest.raises(InputError, match=message):
        read(path, family="llama")


def test_what_is_saved_is_no_target(tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "lm_head"]}
    path = changed(ROOT / "llama" / "modules_to_save", tmp_path / "a", settings)
    assert bits(read(path, family="llama")) == bits(read(ROOT / "llama" / "modules_to_save"))


def test_a_bias_that_no_site_has_must_be_the_base_s(tmp_path: Path) -> None:
    base = tensors(ROOT / "jetmoe" / "model" / "model.safetensors")
    biases = {PREFIX + name: value for name, value in base.items() if name.endswith("bias")}
    assert biases
    of = ROOT / "jetmoe" / "lora"
    path = changed(of, tmp_path / "a", {"bias": "all"}, lambda found: found.update(biases))
    assert bits(read(path, family="jetmoe")) == bits(read(of))
    more = {name: 1 + value for name, value in biases.items()}
    path = changed(of, tmp_path / "b", {"bias": "all"}, lambda found: found.update(more))
    with pytest.raises(InputError, match="bias differs from the base's, and no site here has it"):
        read(path, family="jetmoe")


def test_all_unsupported_settings_are_named(tmp_path: Path) -> None:
    settings = {"init_lora_weights": "pissa", "use_qalora": True, "from_tomorrow": 3, "odd": None}
    with pytest.raises(InputError, match=r"init_lora.*use_qalora.*from_tomorrow") as caught:
        read_adapter(changed(LORA, tmp_path / "a", settings), model("llama"))
    assert "odd" not in str(caught.value)
    assert str(tmp_path / "a" / "adapter_config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "nope"]}, "match nothing: 'nope'"),
        ({"target_modules": None}, "target_modules names nothing"),
        ({"layers_to_transform": [7]}, "match nothing in these layers"),
        ({"layers_to_transform": [0]}, "14 tensors do not fit"),
        ({"target_modules": "(", "layers_to_transform": None}, "no regular expression"),
        ({"target_modules": ".*proj", "layers_to_transform": 1}, "no effect"),
        ({"r": 4}, "lora_A.weight has shape \\[3, 16\\], not \\[4, 16\\]"),
        ({"r": 0}, "rank of a LoRA must be at least 1"),
        ({"r": 1 << 60}, "28 tensors do not fit"),
        ({"r": "many"}, "r: expected int"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, beyond"),
        ({"lora_bias": True}, "lora_B.bias is missing"),
        ({"target_modules": ["q_proj"]}, r"lora_A.weight is not expected"),
        ({"task_type": "SEQ_CLS"}, r"task_type \('SEQ_CLS'\)"),
        ({"peft_type": None}, "peft_type None is not read"),
        ({"peft_type": ["LORA"]}, r"peft_type \['LORA'\] is not read"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_adapter(changed(LORA, tmp_path / "a", settings), model("llama"))


def test_tensors_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    def spoil(found: dict[str, np.ndarray]) -> None:
        found["odd"] = found.pop(f"{QUERY}.lora_A.weight")
        found[f"{QUERY}.lora_B.weight"] = np.zeros((16, 3), np.int32)

    path = changed(LORA, tmp_path / "a", weights=spoil)
    with pytest.raises(InputError, match="3 tensors do not fit") as caught:
        read_adapter(path, model("llama"))
    for part in ("lora_A.weight is missing", "odd is not expected", "lora_B.weight has dtype int"):
        assert part in str(caught.value)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def spoil(found: dict[str, np.ndarray]) -> None:
        values = found[f"{QUERY}.lora_A.weight"].copy()
        values[0, :2] = np.nan, np.inf
        found[f"{QUERY}.lora_A.weight"] = values

    with pytest.raises(InputError, match=f"not finite: 2 in {QUERY}.lora_A.weight"):
        read_adapter(changed(LORA, tmp_path / "a", weights=spoil), model("llama"))


def test_pickles_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = changed(LORA, tmp_path / "a")
    weights = path / "adapter_model.safetensors"
    weights.rename(path / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle, which can run code"):
        read_adapter(path, model("llama"))
    (path / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"adapter_model.safetensors: cannot be read"):
        read_adapter(path, model("llama"))
    with pytest.raises(InputError, match=r"adapter_config.json: cannot be read"):
        read_adapter(tmp_path, model("llama"))


def test_another_base_is_refused() -> None:
    with pytest.raises(InputError, match="match nothing: 'down_proj', 'gate_proj', 'up_proj'"):
        read_adapter(LORA, model("mixtral"))
    with pytest.raises(InputError, match="'q_proj'"):
        read_adapter(LORA, model("jetmoe"))
    wider = model("llama").replace(vocabulary=41)
    read_adapter(LORA, wider)  # nothing of an adapter depends on it


def test_biases_that_no_module_has_are_no_obstacle(tmp_path: Path) -> None:
    path = changed(ROOT / "mixtral" / "lora", tmp_path / "a", {"bias": "all"})
    read_adapter(path, model("mixtral"))
    path = changed(LORA, tmp_path / "b", {"bias": "all"})
    with pytest.raises(InputError, match=r"q_proj.base_layer.bias is missing"):
        read_adapter(path, model("llama"))


@pytest.mark.parametrize(
    "name",
    [
        "lora",
        "ia3_feed_forward",
        "adalora",
        "vera",
        "dora",
        "biases",
        "saved_layers",
        "copies",
        "prefix",
        "prompt",
    ],
)
def test_whatever_stands_in_the_settings_ends_in_bricks_or_a_clean_error(
    name: str, tmp_path: Path
) -> None:
    path = changed(ROOT / "llama" / name, tmp_path / "a")
    settings = json.loads((path / "adapter_config.json").read_text())
    values = (*HOSTILE, {"q_proj": None}, {"(": 3}, {"q_proj": -1}, ["("], "(?P<layer>.*)", [[1]])
    kinds: dict[str, type] = {**KINDS, **virtual_tokens.KINDS}
    known = {field.name for field in dataclasses.fields(kinds[settings["peft_type"]])}
    for key in sorted(known | {"peft_type", "use_dora"}):
        for value in values:
            (path / "adapter_config.json").write_text(json.dumps(settings | {key: value}))
            try:
                bricks = read(path, family="llama")
            except InputError:
                continue
            for brick in bricks.values():
                assert math.isfinite(getattr(brick.config.settings, "scale", 1.0))
                assert not brick.mismatches(model("llama"))
