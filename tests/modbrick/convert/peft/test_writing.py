"""Bricks become adapters that PEFT loads: the bytes that it writes itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modbrick.bricks import (
    IA3,
    Adapter,
    Bias,
    Brick,
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    Prefix,
    Prompt,
    Settings,
    SparseDelta,
)
from modbrick.convert import open_checkpoint
from modbrick.convert.peft import read_adapter, write_adapter
from modbrick.errors import InputError
from tests.contracts.transformers_parity import relative_error
from tests.modbrick.convert.peft.adapters import (
    ROOT,
    ROUNDED,
    WRITTEN,
    bits,
    expected,
    label,
    random_brick,
    read,
    run_folded,
    run_together,
    tensors,
    weights_of,
)
from tests.modbrick.convert.peft.adapters import model_of as model

PYTHON = os.environ.get("MODBRICK_PEFT_PYTHON")


def dtype(directory: Path) -> str:
    return "bfloat16" if directory.name == "bfloat16" else "float32"


def brick(config: BrickConfig, family: str = "llama") -> Brick:
    return random_brick(config, model(family))


def write(path: Path, bricks: dict[str, Brick], family: str, **settings: Any) -> None:
    write_adapter(path, bricks, model(family), family, weights=weights_of(family), **settings)


def settings_of(directory: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((directory / "adapter_config.json").read_text())
    return data


@pytest.mark.parametrize("directory", WRITTEN, ids=label)
def test_what_was_read_is_written_again(directory: Path, tmp_path: Path) -> None:
    family = directory.parent.name
    bricks = read(directory)
    write(tmp_path / "a", bricks, family, dtype=dtype(directory))
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(names)
    if is_rounded(directory):
        ours, theirs = (tensors(path / names[1]) for path in (tmp_path / "a", directory))
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            np.testing.assert_allclose(ours[key], values, rtol=1e-6, atol=1e-6)
    else:
        weights = [(path / names[1]).read_bytes() for path in (directory, tmp_path / "a")]
        assert weights[0] == weights[1]
    back = read(tmp_path / "a", family=family)
    assert {name: brick.config for name, brick in back.items()} == {
        name: brick.config for name, brick in bricks.items()
    }
    if not is_rounded(directory):
        assert bits(back) == bits(bricks)
    original, written = settings_of(directory), settings_of(tmp_path / "a")
    for key in (
        "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias",
        "alpha_pattern",
    ):  # fmt: skip
        assert written.get(key, original.get(key)) == original.get(key)


def is_rounded(directory: Path) -> bool:
    scaled = directory.parent.name == "granitemoe" and directory.name in (
        "embedding",
        "head",
        "prompt",
    )
    return scaled or directory.name in ROUNDED


def test_settings_are_those_that_are_no_defaults(tmp_path: Path) -> None:
    config = BrickConfig(("layer.*.attention.query",), LoRA(2, 3.0))
    write_adapter(tmp_path / "a", {"german": brick(config)}, model("llama"), "llama")
    assert settings_of(tmp_path / "a") == {
        "lora_alpha": 3,
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }


def test_a_scale_of_one_survives(tmp_path: Path) -> None:
    for scaling in ("rank", "root"):
        settings = LoRA(4, None, scaling)
        config = BrickConfig(("layer.0.attention.query",), settings)
        write_adapter(tmp_path / scaling, {"de": brick(config)}, model("llama"), "llama")
        back = read_adapter(tmp_path / scaling, model("llama"), name="de")["de"]
        assert isinstance(back.config.settings, LoRA)
        assert back.config.settings.scale == 1.0
        assert back.config.at == config.at


def test_dropout_survives(tmp_path: Path) -> None:
    rates = {"a": 0.25, "b": 0.25}
    write_adapter(tmp_path / "one", dropping(rates), model("llama"), "llama")
    assert settings_of(tmp_path / "one")["lora_dropout"] == 0.25
    back = read_adapter(tmp_path / "one", model("llama"), name="a")
    assert {getattr(of.config.settings, "dropout", None) for of in back.values()} == {0.25}


def test_dropouts_of_several_shares_are_left_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="absl"):
        write_adapter(tmp_path / "a", dropping({"a": 0.25, "b": 0.0}), model("llama"), "llama")
    assert "dropout of a is left aside" in caplog.text
    assert "lora_dropout" not in settings_of(tmp_path / "a")


def dropping(rates: dict[str, float]) -> dict[str, Brick]:
    """LoRAs of two sites."""
    sites = ("query", "value")
    return {
        name: brick(BrickConfig((f"layer.*.attention.{site}",), LoRA(2, 3.0, dropout=rate)))
        for site, (name, rate) in zip(sites, rates.items(), strict=True)
    }


def test_settings_of_a_prefix_are_sizes(tmp_path: Path) -> None:
    config = BrickConfig(("layer.*.attention.memory",), Prefix(5))
    write_adapter(tmp_path / "a", {"german": brick(config)}, model("llama"), "llama")
    assert settings_of(tmp_path / "a") == {
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 5,
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "token_dim": 8,
    }


def test_bricks_of_several_ranks_become_patterns(tmp_path: Path) -> None:
    bricks = {
        "a": brick(BrickConfig(("layer.*.attention.query",), LoRA(2, 3.0))),
        "long": brick(BrickConfig(("layer.1.attention.value",), LoRA(40, 0.25))),
    }
    write_adapter(tmp_path / "a", bricks, model("llama"), "llama")
    written = settings_of(tmp_path / "a")
    assert (written["r"], written["lora_alpha"]) == (2, 3)
    assert written["rank_pattern"] == {"v_proj": 40}
    assert written["alpha_pattern"] == {"v_proj": 0.25}
    assert written["target_modules"] == ["model.layers.1.self_attn.v_proj", "q_proj"]
    back = read_adapter(tmp_path / "a", model("llama"), name="a")
    renamed = {"a": bricks["a"], "a-r40-a0_25": bricks["long"]}
    assert bits(back) == bits(renamed)


def test_biases_take_the_scale_of_the_lora(tmp_path: Path) -> None:
    bricks = {
        "lora": brick(BrickConfig(("layer.*.attention.query",), LoRA(2, 1.0))),
        "bias": brick(BrickConfig(("layer.1.attention.query",), Bias(4.0))),
    }
    write_adapter(tmp_path / "a", bricks, model("llama"), "llama")
    found = tensors(tmp_path / "a" / "adapter_model.safetensors")
    front = "base_model.model.model.layers"
    want = bricks["bias"].values["layer.1.attention.query.bias"] * 8
    assert np.array_equal(found[f"{front}.1.self_attn.q_proj.lora_B.bias"], want)
    assert not found[f"{front}.0.self_attn.q_proj.lora_B.bias"].any()


def test_a_part_of_a_fused_map(tmp_path: Path) -> None:
    jetmoe = model("jetmoe")
    for name, settings in (("lora", LoRA(2)), ("ia3", IA3())):
        one = brick(BrickConfig(("layer.*.attention.value",), settings), "jetmoe")
        write_adapter(tmp_path / name, {"de": one}, jetmoe, "jetmoe")
    lora, ia3 = (tensors(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "ia3"))
    keys = 8
    front = "base_model.model.model.layers.0.self_attention.kv_proj"
    assert not lora[f"{front}.lora_B.weight"][:keys].any()
    assert lora[f"{front}.lora_B.weight"][keys:].all()
    assert (ia3[f"{front}.ia3_l"][:keys] == 1).all()
    both = brick(
        BrickConfig(("layer.*.attention.key", "layer.*.attention.value"), LoRA(2)), "jetmoe"
    )
    write_adapter(tmp_path / "both", {"de": both}, jetmoe, "jetmoe")
    found = tensors(tmp_path / "both" / "adapter_model.safetensors")
    downs = [both.values[f"layer.0.attention.{site}.down"].T for site in ("key", "value")]
    assert np.array_equal(found[f"{front}.lora_A.weight"], np.concatenate(downs))
    up = found[f"{front}.lora_B.weight"]
    assert not up[:keys, 2:].any()
    assert not up[keys:, :2].any()
    assert settings_of(tmp_path / "both")["r"] == settings_of(tmp_path / "both")["lora_alpha"] == 4


def at(site: str, settings: Settings) -> Brick:
    return brick(BrickConfig((f"layer.*.{site}",), settings))


@pytest.mark.parametrize(
    ("bricks", "message"),
    [
        ({}, "no bricks"),
        ({"de": at("attention", Adapter(4))}, r"no adapter that is de \(adapter\)"),
        (
            {"de": at("attention.query", LoRA(2)), "law": at("attention.key", IA3())},
            r"de \(lora\), law \(ia3\)",
        ),
        ({"de": at("attention", LoRA(2))}, "brick de is at layer.0.attention, where PEFT has no"),
        (
            {"de": at("attention.query", LoRA(2)), "law": at("attention.query", LoRA(2))},
            "de and law both change layer.0.attention.query",
        ),
        (
            {"de": at("attention.query", LoRA(2)), "law": at("attention.key", Bias())},
            r"weights of the base are needed, for model.layers.0.self_attn",
        ),
        (
            {"de": at("attention.query", LoRA(2)), "law": at("feed_forward.up", Bias())},
            "law is a bias without a LoRA at layer.0.feed_forward.up",
        ),
        ({"de": at("attention.query", Bias())}, "in an adapter with LoRAs only"),
        (
            {
                "de": at("attention.query", LoRA(2, 1.0, "root")),
                "law": at("attention.key", LoRA(2, 1.0)),
            },
            "one scaling an adapter",
        ),
        (
            {"de": at("feed_forward.hidden", IA3()), "law": at("feed_forward.down", IA3())},
            "down_proj: before it or behind it",
        ),
        (
            {"de": at("attention.query", LoRA(2)), "law": at("attention.key", DoRA(2))},
            "either LoRAs",
        ),
        (
            {"de": at("attention.memory", Prefix(2)), "law": at("attention.query", LoRA(2))},
            r"no adapter that is de \(prefix\), law \(lora\)",
        ),
        (
            {"de": brick(BrickConfig(("layer.0.attention.memory",), Prefix(2)))},
            "de: PEFT has one prefix in an adapter, and that in all layers",
        ),
        (
            {"de": at("attention.memory", Prefix(2)), "law": at("attention.memory", Prefix(2))},
            "de and law: PEFT has one prefix",
        ),
        (
            {"de": at("attention.memory", Prefix(2)), "law": at("attention.memory", Prefix(3))},
            "de and law are of several lengths",
        ),
        (
            {name: brick(BrickConfig(("prompt",), Prompt(2))) for name in ("de", "law")},
            "de and law are prompts, of which PEFT has one",
        ),
        (
            {"de": brick(BrickConfig(("embedding",), IA3()))},
            "brick de is at embedding, where PEFT has no IA³",
        ),
    ],
)
def test_what_the_library_does_not_have_is_refused(
    bricks: dict[str, Brick], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_adapter(tmp_path / "a", bricks, model("llama"), "llama")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [LoRA(2), IA3(), Bias()])
def test_bricks_of_a_whole_bank_are_refused(settings: LoRA | IA3 | Bias, tmp_path: Path) -> None:
    config = BrickConfig(("layer.*.feed_forward.down",), settings)
    message = "brick de is at layer.0.feed_forward.down, where PEFT has LoRAs with a pair for each"
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a", {"de": brick(config, "mixtral")}, "mixtral")
    assert not any(tmp_path.iterdir())


def test_a_module_is_changed_as_a_whole_or_not(tmp_path: Path) -> None:
    delta = several("llama", BrickConfig((f"{QUERIES}.weight",), SparseDelta(1.0)))
    bricks = {**delta, "law": at("attention.query", LoRA(2))}
    with pytest.raises(InputError, match=r"q_proj is replaced as a whole, and brick law \(lora\)"):
        write(tmp_path / "a", bricks, "llama")
    positions = several("llama", BrickConfig((f"{QUERIES}.bias",), SparseDelta(1.0)))
    with pytest.raises(InputError, match=r"at layer\.0\.attention\.query\.bias, where PEFT has no"):
        write(tmp_path / "a", positions, "llama")
    shifted = {"de": at("attention_norm", NormTuning(bias=True))}
    with pytest.raises(
        InputError, match=r"de has a bias for model.*input_layernorm, which has none"
    ):
        write(tmp_path / "a", shifted, "llama")


def test_dense_layers_between_banks_are_refused(tmp_path: Path) -> None:
    """For a LoRA the library makes targets of that name into targets among the experts."""
    dense_between = open_checkpoint(ROOT.parent / "qwen3_moe" / "dense_between").model
    for settings in (IA3(), LoRA(2)):
        of = random_brick(BrickConfig(("layer.1.feed_forward.up",), settings), dense_between)
        if isinstance(settings, IA3):
            write_adapter(tmp_path / "ia3", {"de": of}, dense_between, "qwen3_moe")
            continue
        with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj for one of the experts"):
            write_adapter(tmp_path / "lora", {"de": of}, dense_between, "qwen3_moe")


def test_models_and_families_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    de = {"de": at("feed_forward.down", LoRA(2))}
    other = Brick(BrickConfig(("layer.*.feed_forward.down",), LoRA(3)), de["de"].values)
    with pytest.raises(InputError, match="brick de does not fit the model"):
        write_adapter(tmp_path / "a", {"de": other}, model("llama"), "llama")
    with pytest.raises(InputError, match="no format 'lama'"):
        write_adapter(tmp_path / "a", de, model("llama"), "lama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="holds something already"):
        write_adapter(tmp_path / "full", de, model("llama"), "llama")


def several(family: str, *configs: BrickConfig) -> dict[str, Brick]:
    """Random bricks whose changes are as large as the base's weights or smaller."""
    found = {}
    for seed, config in enumerate(configs):
        drawn = random_brick(config, model(family), seed)
        values = {name: _shrunk(name, value) for name, value in drawn.values.items()}
        found[f"brick{seed}"] = Brick(config, values)
    return found


def _shrunk(name: str, values: np.ndarray) -> np.ndarray:
    if name.endswith("positions"):
        return np.arange(values.size, dtype=np.int32)
    if name.endswith("magnitude"):
        return 1 + 0.3 * np.tanh(values)
    return values * np.float32(0.3)


QUERIES, KEYS = "layer.*.attention.query", "layer.*.attention.key"
MIXED = {
    "llama/dora": [
        BrickConfig((QUERIES, "layer.1.feed_forward.down", "head"), DoRA(2, 3.0)),
        BrickConfig(("layer.*.feed_forward.up",), DoRA(3, 3.0)),
        BrickConfig((QUERIES, "layer.0.attention.output"), Bias(0.5)),
    ],
    "llama/biases": [
        BrickConfig((QUERIES,), LoRA(2, 4.0, "root")),
        BrickConfig((QUERIES, "layer.0.attention.value"), Bias(0.5)),
        BrickConfig(("layer.1.attention.query",), Bias(4 / 2**0.5)),
    ],
    "llama/copies_beside": [
        BrickConfig(("embedding", QUERIES), LoRA(2, 4.0)),
        BrickConfig(("norm", "layer.0.attention_norm"), NormTuning()),
        BrickConfig(("layer.*.attention.key.weight", "layer.1.*.up.weight"), SparseDelta(1.0)),
        BrickConfig((KEYS,), Bias()),
    ],
    "llama/copies_beside_factors": [
        BrickConfig((QUERIES, "head"), IA3()),
        BrickConfig(("layer.*.feed_forward_norm",), NormTuning()),
    ],
    "llama/norms": [
        BrickConfig(("norm", "layer.1.feed_forward_norm"), NormTuning()),
        BrickConfig(("layer.*.feed_forward_norm",), NormTuning()),
    ],
    "llama/sparse": [BrickConfig(("layer.*.attention.query.weight",), SparseDelta(0.2))],
    "granitemoe/outermost": [
        BrickConfig(("head", "layer.1.attention.key"), LoRA(2, 4.0)),
        BrickConfig(("embedding",), LoRA(3, 4.0)),
    ],
    "granitemoe/experts": [
        BrickConfig(("layer.*.feed_forward.up",), LoRA(2, 5.0, pairs="expert")),
        BrickConfig(("layer.*.feed_forward.gate",), LoRA(3, 2.0, pairs="expert")),
        BrickConfig(("layer.0.feed_forward.down",), LoRA(3, 2.0, pairs="expert")),
    ],
    "jetmoe/fused": [BrickConfig((KEYS, "layer.*.attention.value"), LoRA(2, 3.0))],
    "llama/prefix": [BrickConfig(("layer.*.attention.memory",), Prefix(5))],
    "granitemoe/prompt": [BrickConfig(("prompt",), Prompt(2))],
    "jetmoe/dora": [
        BrickConfig((KEYS,), DoRA(2, 3.0)),
        BrickConfig(("layer.0.attention.value",), DoRA(1, 1.0)),
    ],
}
"""Bricks that PEFT has one adapter for."""


def run(name: str, family: str, bricks: dict[str, Brick]) -> np.ndarray:
    """Logits with bricks; those in front and at a tied head cannot be folded."""
    hooks = {brick.config.settings.hook for brick in bricks.values()}
    if name == "granitemoe/outermost" or hooks & {"memory", "prompt"}:
        return run_together(family, [bricks])[0]
    return run_folded(family, bricks)


@pytest.mark.parametrize("name", MIXED)
def test_what_is_written_computes_the_same_when_it_is_read(name: str, tmp_path: Path) -> None:
    family = name.split("/")[0]
    bricks = several(family, *MIXED[name])
    write(tmp_path / "a", bricks, family)
    back = read(tmp_path / "a", family=family)
    ours, theirs = (run(name, family, of) for of in (bricks, back))
    base = expected(ROOT / family / "model")["logits"]
    assert relative_error(ours, base) > 0.05
    assert relative_error(theirs, ours) <= 1e-5


def test_separate_bricks_of_a_bank_double_the_rank(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bricks = several("granitemoe", *MIXED["granitemoe/experts"])
    write(tmp_path / "a", bricks, "granitemoe")
    assert "gate_up_proj has one first matrix for layer.0.feed_forward." in caplog.text
    assert "their ranks add up to 5" in caplog.text
    written = settings_of(tmp_path / "a")
    assert (written["r"], written["lora_alpha"], written["target_modules"]) == (5, 12.5, [])
    assert written["target_parameters"] == [
        "gate_up_proj", "model.layers.0.block_sparse_moe.experts.down_proj",
    ]  # fmt: skip


@pytest.mark.skipif(
    PYTHON is None,
    reason="MODBRICK_PEFT_PYTHON names no Python that has torch, transformers and peft",
)
def test_the_library_computes_the_same_from_what_is_written(tmp_path: Path) -> None:
    arguments, wanted = [], []
    for directory in [*WRITTEN, *(ROOT / "llama" / n for n in ("adalora", "vera", "p_tuning"))]:
        family, target = directory.parent.name, tmp_path / label(directory)
        write(target, read(directory), family, dtype=dtype(directory))
        result = target.with_suffix(".safetensors")
        arguments += [ROOT / family / "model", target, result]
        wanted.append((result, tensors(directory / "expected.safetensors")["logits"]))
    for name, configs in MIXED.items():
        family, target = name.split("/")[0], tmp_path / "mixed" / name
        bricks = several(family, *configs)
        write(target, bricks, family)
        result = target.with_suffix(".safetensors")
        arguments += [ROOT / family / "model", target, result]
        wanted.append((result, run(name, family, bricks)))
    assert PYTHON is not None
    subprocess.run(
        [PYTHON, ROOT / "make_fixtures.py", "evaluate", *arguments],
        check=True,
        timeout=600,
        env={key: v for key, v in os.environ.items() if key != "PYTHONPATH"}
        | {"HF_HUB_OFFLINE": "1"},
    )
    for result, logits in wanted:
        np.testing.assert_allclose(tensors(result)["logits"], logits, rtol=1e-5, atol=1e-5)
