"""Which modules settings name."""

from __future__ import annotations

import pytest

from modbrick.convert.peft.module import Module
from modbrick.convert.peft.settings import Targets, of_pattern, read_settings
from modbrick.errors import InputError

MODULES = {
    name: Module(name, "", obstacle="no linear map") if "norm" in name else Module(name, "linear")
    for layer in range(12)
    for name in (
        f"model.layers.{layer}.attn.q_proj",
        f"model.layers.{layer}.attn.aq_proj",
        f"model.layers.{layer}.mlp.experts.3.w1",
        f"model.layers.{layer}.norm",
    )
}


def chosen(**settings: object) -> list[str]:
    targets = read_settings(Targets, settings, "settings")
    return [module.name.removeprefix("model.layers.") for module in targets.chosen(MODULES)]


def test_names_are_whole_or_the_end_behind_a_dot() -> None:
    assert len(chosen(target_modules=["q_proj"])) == 12
    assert chosen(target_modules=["model.layers.1.attn.q_proj"]) == ["1.attn.q_proj"]
    assert chosen(target_modules=["1.attn.q_proj"]) == ["1.attn.q_proj"]


def test_a_text_matches_as_a_whole() -> None:
    assert chosen(target_modules=r".*\.1\d?\.attn\.q_proj") == [
        "1.attn.q_proj",
        "10.attn.q_proj",
        "11.attn.q_proj",
    ]
    assert len(chosen(target_modules=r".*q_proj|nothing")) == 24
    with pytest.raises(InputError, match="match nothing"):
        chosen(target_modules=r".*\.q_pro")


def test_modules_are_excluded() -> None:
    left = chosen(target_modules=["q_proj"], exclude_modules=r".*\.\d\.attn.*")
    assert left == ["10.attn.q_proj", "11.attn.q_proj"]
    assert len(chosen(target_modules=["q_proj"], exclude_modules=["0.attn.q_proj"])) == 11


def test_layers_are_counted_by_the_first_number() -> None:
    assert chosen(target_modules=["w1"], layers_to_transform=[3]) == ["3.mlp.experts.3.w1"]
    assert chosen(target_modules=["q_proj"], layers_to_transform=1) == ["1.attn.q_proj"]
    for pattern in ("layers", ["blocks", "layers"]):
        settings = {"layers_to_transform": [2], "layers_pattern": pattern}
        assert chosen(target_modules=["q_proj"], **settings) == ["2.attn.q_proj"]
    whole = ["w1", "model.layers.5.attn.q_proj"]  # a whole name counts in any layer
    both = ["5.attn.q_proj", "3.mlp.experts.3.w1"]
    assert sorted(chosen(target_modules=whole, layers_to_transform=[3])) == sorted(both)
    with pytest.raises(InputError, match="match nothing in these layers"):
        chosen(target_modules=["q_proj"], layers_to_transform=[2], layers_pattern="blocks")
    with pytest.raises(InputError, match="no effect without layers_to_transform"):
        chosen(target_modules=["q_proj"], layers_pattern="layers")


def test_modules_that_cannot_be_adapted_are_named() -> None:
    with pytest.raises(InputError, match=r"here: model.layers.0.norm: no linear map; model"):
        chosen(target_modules=["norm"])


def test_the_first_pattern_that_matches_the_end_counts() -> None:
    patterns = {"q_proj": 1, r"layers\.1\..*": 2, "model.layers.1.attn.q_proj": 3}
    assert of_pattern(patterns, "model.layers.1.attn.q_proj", 0) == 1
    assert of_pattern(patterns, "model.layers.1.attn.aq_proj", 0) == 2
    assert of_pattern(patterns, "model.layers.2.attn.aq_proj", 0) == 0
    assert of_pattern(None, "model.layers.2.attn.aq_proj", 0) == 0


def test_settings_pass_where_they_change_nothing() -> None:
    targets = {"target_modules": ["q_proj"]}
    silent: dict[str, object] = {
        "from_tomorrow": None,
        "off": False,
        "empty": {},
        "revision": "main",
        "bias": "none",
    }
    assert read_settings(Targets, targets | silent, "x") == Targets(("q_proj",))
    assert read_settings(Targets, targets | {"dropout": 0.1}, "x", aside=("dropout",))
    assert read_settings(Targets, targets | {"init": True}, "x", neutral={"init": (True,)})
    for name, value in (("count", 0), ("dropout", 0.1), ("init", 1), ("bias", "all")):
        with pytest.raises(InputError, match=rf"x: settings .* not supported: {name} \({value!r}"):
            read_settings(Targets, targets | {name: value}, "x", neutral={"init": (True,)})
