"""Adapters are read exactly, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from modbrick.bricks import IA3, Bias, LoRA
from modbrick.convert.peft import read_adapter
from modbrick.convert.peft.reading import KINDS
from modbrick.errors import InputError
from tests.contracts.transformers_parity import HOSTILE, relative_error
from tests.modbrick.convert.peft.adapters import ADAPTERS, ROOT, changed, expected, label, logits
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
    ("name", "message"),
    [
        ("dora", r"not supported: use_dora \(True\)"),
        ("bias", r"not supported: bias \('lora_only'\)"),
        ("modules_to_save", r"not supported: modules_to_save \(\['lm_head'\]\)"),
        ("embedding", "model.embed_tokens: no linear map"),
        ("head", "lm_head: the head"),
        ("norms", "'LN_TUNING' is not read; what is: LORA"),
        ("loha", "'LOHA' is not read"),
        ("prefix", "'PREFIX_TUNING' is not read"),
        ("prompt", "'PROMPT_TUNING' is not read"),
        ("p_tuning", "'P_TUNING' is not read"),
    ],
)
def test_what_has_no_kind_here_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_adapter(ROOT / "llama" / name, model("llama"))


@pytest.mark.parametrize("family", ["mixtral", "granitemoe"])
def test_banks_of_experts_are_refused(family: str) -> None:
    with pytest.raises(InputError, match=r"not supported: target_parameters \(\['.*down_proj'"):
        read_adapter(ROOT / family / "experts", model(family))


def test_all_unsupported_settings_are_named(tmp_path: Path) -> None:
    settings = {"use_dora": True, "init_lora_weights": "pissa", "from_tomorrow": 3, "odd": None}
    with pytest.raises(InputError, match=r"init_lora.*use_dora.*from_tomorrow") as caught:
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
    with pytest.raises(InputError, match=r"bias \('all'\), which replaces those of the base"):
        read_adapter(path, model("llama"))


@pytest.mark.parametrize("name", ["lora", "ia3_feed_forward", "adalora", "vera"])
def test_whatever_stands_in_the_settings_ends_in_bricks_or_a_clean_error(
    name: str, tmp_path: Path
) -> None:
    path = changed(ROOT / "llama" / name, tmp_path / "a")
    settings = json.loads((path / "adapter_config.json").read_text())
    values = (*HOSTILE, {"q_proj": None}, {"(": 3}, {"q_proj": -1}, ["("], "(?P<layer>.*)", [[1]])
    known = {field.name for field in dataclasses.fields(KINDS[settings["peft_type"]])}
    for key in sorted(known | {"peft_type", "use_dora"}):
        for value in values:
            (path / "adapter_config.json").write_text(json.dumps(settings | {key: value}))
            try:
                bricks = read_adapter(path, model("llama"), family="llama")
            except InputError:
                continue
            for brick in bricks.values():
                assert math.isfinite(getattr(brick.config.settings, "scale", 1.0))
                assert not brick.mismatches(model("llama"))
