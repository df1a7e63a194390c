"""Limits of models: impossible sizes are refused by name, equal models have equal configs."""

import dataclasses

import pytest

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
    SegmentConfig,
    YarnScaling,
)
from modbrick.errors import InputError
from modbrick.schema import from_json, from_mapping, to_json, to_mapping

SPARSE = LayerConfig(
    AttentionConfig(2, 8, experts=ExpertsConfig(4, 2)),
    FeedForwardConfig(24, experts=ExpertsConfig(4, 2, RouterConfig("gmm", sample_top_k=1))),
)
DENSE = LayerConfig(
    AttentionConfig(
        4,
        8,
        kind="softmax",
        key_value_heads=2,
        biases=("query", "key"),
        query_key_norm=NormConfig("rms", bias=False),
        rope=RopeConfig(scaling=YarnScaling(factor=4.0, original_context=64)),
        window=16,
    ),
    FeedForwardConfig(24, activation="silu", gated=True),
    NormConfig("rms", bias=False),
)
MODEL = ModelConfig(32, 16, (SegmentConfig(SPARSE, 2), SegmentConfig(DENSE)))


def test_json_round_trip():
    assert from_json(ModelConfig, to_json(MODEL)) == MODEL


def test_equal_neighbouring_segments_are_one():
    apart = MODEL.replace(
        segments=(SegmentConfig(SPARSE), SegmentConfig(SPARSE), *MODEL.segments[1:])
    )
    assert apart == MODEL
    assert apart.layers == (SPARSE, SPARSE, DENSE)


def change(config, path, value):
    name, *rest = path
    if isinstance(config, tuple):
        changed = list(config)
        changed[name] = change(config[name], rest, value) if rest else value
        return tuple(changed)
    value = change(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("attention", "experts", "top_k"), 5, r"number of experts \(4\), got 5"),
        (("attention", "experts", "top_k"), 0, "got 0"),
        (("attention", "experts", "count"), 0, "count must be at least 1, got 0"),
        (("feed_forward", "experts", "router", "hidden"), 0, "hidden width must be positive"),
        (("feed_forward", "experts", "router", "sample_top_k"), -1, "negative: -1"),
        (("attention", "heads"), 0, "heads must be at least 1, got 0"),
        (("attention", "head_width"), -1, "head_width must be at least 1, got -1"),
        (("attention", "key_value_heads"), 3, "2 heads do not divide into 3 key_value_heads"),
        (("attention", "scale"), float("nan"), "attention scale must be finite, got nan"),
        (("residual_multiplier",), float("inf"), "residual_multiplier must be finite, got inf"),
        (("norm", "epsilon"), float("inf"), "norm epsilon must be finite, got inf"),
        (("attention", "clip"), 0.0, "clip must be positive, got 0"),
        (("attention", "window"), 0, "window must be at least 1, got 0"),
        (("attention", "biases"), ("query",), "no query bias"),
        (("feed_forward", "bias"), True, "no bias of their own"),
        (("feed_forward", "hidden"), 0, "hidden must be at least 1, got 0"),
        (("norm", "epsilon"), 0.0, "epsilon must be positive, got 0"),
        (("norm", "kind"), "rms", "rms norm has no bias"),
        (("attention", "kind"), "softmax", None),
    ],
)
def test_impossible_layers_are_refused_by_name(path, value, message):
    if message is None:
        change(SPARSE, path, value)
        return
    with pytest.raises(InputError, match=message):
        change(SPARSE, path, value)


def test_sampled_experts_are_among_the_chosen():
    with pytest.raises(InputError, match=r"sample_top_k \(3\) exceeds top_k \(2\)"):
        ExpertsConfig(4, 2, RouterConfig(sample_top_k=3))


def test_equal_attention_has_equal_configs():
    plain = AttentionConfig(4, 16)
    assert AttentionConfig(4, 16, key_value_heads=4, scale=0.25) == plain
    assert AttentionConfig(4, 16, key_value_heads=2, scale=0.3) != plain


def test_softmax_attends_to_the_current_token():
    with pytest.raises(InputError, match="attend_current"):
        AttentionConfig(2, 8, kind="softmax", attend_current=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"base": 0.0}, "base must be positive, got 0"),
        ({"fraction": 0.0}, "fraction must be in"),
        ({"base": float("inf")}, "rope base must be finite, got inf"),
        ({"scaling": {"kind": "linear", "factor": 0.5}}, "factor must be at least 1, got 0.5"),
        ({"scaling": {"kind": "llama3"}}, "scaling.original_context: missing"),
        ({"scaling": {"factor": 2.0}}, "scaling.kind: missing; it can be linear, llama3, yarn"),
        ({"scaling": {"kind": "yarm"}}, "scaling.kind: 'yarm' is not one of .*mean 'yarn'"),
        (
            {"scaling": {"kind": "linear", "original_context": 8}},
            "scaling.original_context: kind 'linear' has none, only llama3, yarn",
        ),
        (
            {"scaling": {"kind": "yarn", "original_context": 0}},
            "original_context must be at least 1, got 0",
        ),
        (
            {"scaling": {"kind": "yarn", "original_context": 8}, "base": 1.0},
            "base must exceed 1",
        ),
        (
            {"scaling": {"kind": "yarn", "original_context": 8, "beta_slow": 0.0}},
            "beta_slow must be",
        ),
        (
            {"scaling": {"kind": "llama3", "original_context": 8, "low_frequency_factor": 4.0}},
            "high_frequency_factor must exceed low_frequency_factor, got 4.0 and 4.0",
        ),
        (
            {"scaling": {"kind": "yarn", "original_context": 8, "attention_factor": float("nan")}},
            "rope attention_factor must be finite, got nan",
        ),
    ],
)
def test_impossible_positions_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        from_mapping(RopeConfig, data)


def test_rope_rotates_pairs():
    with pytest.raises(InputError, match="even number"):
        AttentionConfig(2, 6, rope=RopeConfig(fraction=0.5))


@pytest.mark.parametrize("name", ["vocabulary", "width", "context"])
def test_impossible_models_are_refused_by_name(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        MODEL.replace(**{name: 0})


def test_models_need_layers():
    with pytest.raises(InputError, match="at least one segment"):
        MODEL.replace(segments=())
    with pytest.raises(InputError, match="repeats must be at least 1, got 0"):
        SegmentConfig(SPARSE, 0)


def test_identity_keys_and_values_have_the_models_width():
    attention = AttentionConfig(2, 8, key_value="identity")
    layer = dataclasses.replace(SPARSE, attention=attention)
    MODEL.replace(segments=(SegmentConfig(layer),))
    with pytest.raises(InputError, match=r"width \(24\), got 2 \* 8"):
        MODEL.replace(segments=(SegmentConfig(layer),), width=24)
    biased = change(layer, ("attention", "biases"), ("key",))
    with pytest.raises(InputError, match="drop key and value from biases"):
        MODEL.replace(segments=(SegmentConfig(biased),))


def test_a_misspelt_key_is_named_with_its_path():
    data = to_mapping(MODEL)
    data["segments"][0]["layer"]["attention"]["hedas"] = 3
    message = r"segments\[0\]\.layer\.attention\.hedas: unknown key; did you mean 'heads'"
    with pytest.raises(InputError, match=message):
        from_mapping(ModelConfig, data)
