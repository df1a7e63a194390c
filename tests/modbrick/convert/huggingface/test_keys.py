"""Keys of configs that are left aside."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modbrick.convert.families import granitemoe, jetmoe, llama, mistral, mixtral, olmoe, qwen3_moe
from modbrick.convert.huggingface.keys import (
    IGNORED,
    NEUTRAL,
    REFUSED_IF_SET,
    changes_nothing,
    noise,
    without_keys,
)
from modbrick.convert.registry import FORMATS
from modbrick.errors import InputError
from tests.contracts.transformers_parity import config_of

RECORDS = (
    llama.LlamaFields,
    mistral.MistralFields,
    mixtral.MixtralFields,
    granitemoe.GraniteMoeFields,
    olmoe.OlmoeFields,
    jetmoe.JetMoeFields,
    qwen3_moe.Qwen3MoeFields,
)


def test_nothing_that_a_family_reads_is_left_aside() -> None:
    for record in RECORDS:
        names = {field.name for field in dataclasses.fields(record)}
        assert not names & (IGNORED | REFUSED_IF_SET), record
    assert not IGNORED & REFUSED_IF_SET
    assert not IGNORED & NEUTRAL.keys()


FAMILIES = ("llama", "mistral", "mixtral", "granitemoe", "olmoe", "jetmoe", "qwen3_moe")

HARMLESS: dict[str, Any] = {
    "is_llama_config": True,
    "rope_interleaved": False,
    "transformers.js_config": {"dtype": "q4", "use_external_data_format": True},
    "unsloth_fixed": True,
    "unsloth_version": "2024.9",
    "_attn_implementation": "sdpa",
    "_commit_hash": None,
    "_flash_attn_2_enabled": True,
    "neftune_noise_alpha": None,
    "per_layer_config": None,
    "use_alibi": False,
    "moe_layers": [],
    "layer_overrides": {},
    "note": "",
    "num_nextn_predict_layers": 0,
    "n_shared_experts": 0,
    "z_loss_coef": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": 0.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1,
    "position_embedding_type": "rope",
    "is_causal": True,
    "hidden_dropout": 0.5,
    "attention_probs_dropout_prob": 0.1,
    "resid_pdrop": 0.1,
    "moe_jitter_eps": 0.1,
    "layerdrop": 0.1,
    "chunk_size_feed_forward": 0,
    "cache_implementation": "static",
    "pruned_heads": {},
    "quantization_config": None,
    "rope_scaling": {},
    "partial_rotary_factor": 1.0,
}
"""None of them changes a bit of what the library computes, in any family."""

HARMFUL: dict[str, Any] = {
    "rope_interleaved": True,
    "is_causal": False,
    "use_alibi": True,
    "attn_logit_softcapping": 30.0,
    "mystery": 2,
    "hidden_dropout": "some",
    "attention_multiplier": 1.0,
    "softmax_scale": 0.0,
    "n_shared_experts": 1,
    "layer_overrides": {"3": {}},
    "note": "x",
    "routed_scaling_factor": 2.5,
    "attention_chunk_size": 0,
}


def layer_types(config: dict[str, Any]) -> list[str]:
    """What the layers of a model are, as the library names it."""
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    return ["sliding_attention" if windowed else "full_attention"] * config["num_hidden_layers"]


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_say_nothing_are_left_aside(family: str) -> None:
    form, config = FORMATS[family], config_of(family)
    plain = form.read_config(config, "config.json")
    theirs = {key: value for key, value in HARMLESS.items() if key not in config}
    changes = [{key: value} for key, value in theirs.items()]
    changes += [theirs, {"layer_types": layer_types(config)}, {"layer_types": None}]
    changes += [{"attention_dropout": 0.1}, {"attention_dropout": None}]
    for change in changes:
        assert form.read_config(config | change, "config.json") == plain, change


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_may_say_something_are_refused_by_name(family: str) -> None:
    form, config = FORMATS[family], config_of(family)
    for key, value in HARMFUL.items():
        if key in config:
            continue
        with pytest.raises(InputError, match=rf"matter: {key} .*--ignore_keys={key}$"):
            form.read_config(config | {key: value}, "config.json")
    kinds = layer_types(config)
    for wrong in (["chunked_attention"] * len(kinds), ["full_attention", "sliding_attention"]):
        with pytest.raises(InputError, match=r"^config\.json: layer_types has"):
            form.read_config(config | {"layer_types": wrong}, "config.json")
    with pytest.raises(InputError, match=rf"layer_types names {len(kinds) + 1} layers"):
        form.read_config(config | {"layer_types": [*kinds, kinds[0]]}, "config.json")


def test_every_neutral_value_is_one() -> None:
    for key, values in NEUTRAL.items():
        assert all(changes_nothing(key, value) for value in values)
        assert not changes_nothing(key, 7)
        assert not changes_nothing(key, [1])


def test_noise_is_told() -> None:
    config = {
        "attention_dropout": 0.1,
        "router_jitter_noise": 0.0,
        "resid_pdrop": 1,
        "drop_rate": "x",
    }
    config |= {"ffn_dropout_prob": 0.2, "drop_path_rate": 0.3, "token_drop": 1, "drop_tokens": 1}
    named = {"attention_dropout": 0.1, "resid_pdrop": 1, "ffn_dropout_prob": 0.2}
    assert noise(config) == named | {"drop_path_rate": 0.3}


def test_keys_to_ignore() -> None:
    config = {"a": 1, "b": {"c": 2, "d": 3}, "b.c": 4}
    assert without_keys(config, ["a"], "x") == ({"b": {"c": 2, "d": 3}, "b.c": 4}, {"a": 1})
    assert without_keys(config, ["b.c", "b.d"], "x")[0] == {"a": 1, "b": {"c": 2}}
    assert without_keys(config, [], "x") == (config, {})
    for key in ("c", "b.e", "a.b", "b..c", "", "."):
        with pytest.raises(InputError, match=r"^x: there is no key .* to ignore$"):
            without_keys(config, [key], "x")
