"""Families of models from the literature."""

from __future__ import annotations

from typing import Any

import pytest

from modbrick.config import ModelConfig
from modbrick.config.families import dense, jetmoe, mixtral, moduleformer
from modbrick.convert.families import jetmoe as jetmoe_format
from modbrick.convert.families import mixtral as mixtral_format
from modbrick.errors import InputError


def family(**changes: Any) -> ModelConfig:
    sizes = {
        "vocabulary": 40,
        "width": 16,
        "layers": 3,
        "heads": 1,
        "attention_width": 16,
        "feed_forward_width": 24,
        "attention_experts": 4,
        "feed_forward_experts": 6,
    }
    return moduleformer(**(sizes | changes))


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("attention_width", [8, 16, 32])
def test_one_head_as_wide_as_the_model_has_identity_keys_and_values(
    heads: int, attention_width: int
) -> None:
    attention = family(heads=heads, attention_width=attention_width).layers[0].attention
    assert attention.kind == "stickbreaking"
    assert attention.query_width == attention_width
    if (heads, attention_width) == (1, 16):
        assert (attention.key_value, attention.biases) == ("identity", ())
    else:
        assert (attention.key_value, attention.biases) == ("projected", ("key", "value"))


@pytest.mark.parametrize("heads", [3, 0, -2])
def test_heads_divide_the_attention_width(heads: int) -> None:
    with pytest.raises(InputError, match=f"attention_width 16 does not divide into {heads} heads"):
        family(heads=heads)


def test_every_layer_is_the_same_mixture_twice() -> None:
    config = family(top_k=3, feed_forward_top_k=1, router="gmm", router_width=5, sample_top_k=1)
    assert len(config.layers) == 3
    assert len(set(config.layers)) == 1
    attention, feed_forward = config.layers[0].attention.experts, config.layers[0].feed_forward
    assert attention is not None
    assert feed_forward.experts is not None
    assert (attention.count, attention.top_k) == (4, 3)
    assert (feed_forward.experts.count, feed_forward.experts.top_k) == (6, 1)
    assert attention.router == feed_forward.experts.router
    assert (attention.router.kind, attention.router.hidden) == ("gmm", 5)
    assert feed_forward.hidden == 24
    same = family(top_k=3).layers[0].feed_forward.experts
    assert same is not None
    assert same.top_k == 3, "both banks choose as many unless told otherwise"


def test_a_dense_decoder_is_that_model_without_its_experts() -> None:
    sparse = family()
    config = dense(vocabulary=40, width=16, layers=3, heads=2, feed_forward_width=24)
    attention, feed_forward = config.layers[0].attention, config.layers[0].feed_forward
    assert attention.experts is feed_forward.experts is None
    assert (attention.kind, attention.heads, attention.head_width) == ("stickbreaking", 2, 8)
    assert feed_forward.activation == sparse.layers[0].feed_forward.activation
    assert not feed_forward.gated
    for field in ("norm", "tied_head", "initial_scale", "dtype", "context"):
        assert getattr(config, field) == getattr(sparse, field)
    with pytest.raises(InputError, match="width 16 does not divide into 3 heads"):
        dense(vocabulary=40, width=16, layers=3, heads=3, feed_forward_width=24)


# What a family says of a model is what the reader of its published checkpoints says.


def test_jetmoe_is_as_its_checkpoints_say() -> None:
    published = {
        "model_type": "jetmoe",
        "architectures": ["JetMoeForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "kv_channels": 8,
        "intermediate_size": 24,
        "num_local_experts": 4,
        "max_position_embeddings": 64,
    }
    config = jetmoe(
        vocabulary=40,
        width=16,
        layers=3,
        heads=2,
        head_width=8,
        feed_forward_width=24,
        experts=4,
        context=64,
        dtype="float32",
    )
    assert config == jetmoe_format.read_config(published, "config.json").model


def test_mixtral_is_as_its_checkpoints_say() -> None:
    published = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "num_local_experts": 4,
        "max_position_embeddings": 64,
    }
    sizes: dict[str, Any] = {
        "vocabulary": 40,
        "width": 16,
        "layers": 3,
        "key_value_heads": 2,
        "feed_forward_width": 24,
        "experts": 4,
        "context": 64,
        "dtype": "float32",
    }
    expected = mixtral_format.read_config(published, "config.json").model
    assert mixtral(heads=4, **sizes) == expected
    with pytest.raises(InputError, match="width 16 does not divide into 3 heads"):
        mixtral(heads=3, **sizes)
