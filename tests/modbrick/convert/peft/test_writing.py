"""Bricks become adapters that PEFT loads: the bytes that it writes itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from modbrick.bricks import IA3, Adapter, Bias, Brick, BrickConfig, LoRA
from modbrick.convert import open_checkpoint
from modbrick.convert.peft import read_adapter, write_adapter
from modbrick.errors import InputError
from tests.modbrick.convert.peft.adapters import ROOT, WRITTEN, bits, label, random_brick, tensors
from tests.modbrick.convert.peft.adapters import model_of as model

PYTHON = os.environ.get("MODBRICK_PEFT_PYTHON")


def dtype(directory: Path) -> str:
    return "bfloat16" if directory.name == "bfloat16" else "float32"


def brick(config: BrickConfig, family: str = "llama") -> Brick:
    return random_brick(config, model(family))


def settings_of(directory: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((directory / "adapter_config.json").read_text())
    return data


@pytest.mark.parametrize("directory", WRITTEN, ids=label)
def test_what_was_read_is_written_byte_for_byte(directory: Path, tmp_path: Path) -> None:
    family = directory.parent.name
    bricks = read_adapter(directory, model(family))
    write_adapter(tmp_path / "a", bricks, model(family), family, dtype=dtype(directory))
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(names)
    weights = [(path / names[1]).read_bytes() for path in (directory, tmp_path / "a")]
    assert weights[0] == weights[1]
    assert bits(read_adapter(tmp_path / "a", model(family))) == bits(bricks)
    original, written = settings_of(directory), settings_of(tmp_path / "a")
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "lora_bias", "alpha_pattern"):
        assert written.get(key, original.get(key)) == original.get(key)


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
    with pytest.raises(InputError, match=r"kv_proj holds layer.0.attention.key and .* as one map"):
        write_adapter(tmp_path / "both", {"de": both}, jetmoe, "jetmoe")


def at(site: str, settings: LoRA | IA3 | Bias | Adapter) -> Brick:
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
            "a bias without a LoRA at layer.0.attention.key",
        ),
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
    ],
)
def test_what_the_library_does_not_have_is_refused(
    bricks: dict[str, Brick], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_adapter(tmp_path / "a", bricks, model("llama"), "llama")
    assert not any(tmp_path.iterdir())


def test_pairs_of_experts_are_refused(tmp_path: Path) -> None:
    config = BrickConfig(("layer.*.feed_forward.down",), LoRA(2, pairs="expert"))
    with pytest.raises(InputError, match="brick de has a pair for each expert of a bank"):
        write_adapter(tmp_path / "a", {"de": brick(config, "mixtral")}, model("mixtral"), "mixtral")
    assert not any(tmp_path.iterdir())


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


@pytest.mark.skipif(
    PYTHON is None,
    reason="MODBRICK_PEFT_PYTHON names no Python that has torch, transformers and peft",
)
def test_the_library_computes_the_same_from_what_is_written(tmp_path: Path) -> None:
    arguments, wanted = [], []
    for directory in [*WRITTEN, ROOT / "llama" / "adalora", ROOT / "llama" / "vera"]:
        family, target = directory.parent.name, tmp_path / label(directory)
        bricks = read_adapter(directory, model(family))
        write_adapter(target, bricks, model(family), family, dtype=dtype(directory))
        result = target.with_suffix(".safetensors")
        arguments += [ROOT / family / "model", target, result]
        wanted.append((result, tensors(directory / "expected.safetensors")["logits"]))
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
