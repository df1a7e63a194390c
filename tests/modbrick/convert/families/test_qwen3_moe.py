"""The format of Qwen3-MoE."""

from __future__ import annotations

from typing import ClassVar

import pytest

from modbrick.convert.families.qwen3_moe import FORMAT
from modbrick.errors import InputError
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import (
    BALANCED_REFUSALS,
    HEAD_REFUSALS,
    Refusals,
    config_of,
)

WINDOW = {"use_sliding_window": True, "sliding_window": 4}


class TestQwen3Moe(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        *HEAD_REFUSALS,
        *BALANCED_REFUSALS,
        (WINDOW | {"max_window_layers": 2}, "max_window_layers is 2 with use_sliding_window"),
        (WINDOW | {"sliding_window": 0}, "window must be at least 1, got 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0, below 1"),
        ({"num_experts": 3}, "the same thing, and differ"),
    ]


def test_dense_and_sparse_layers_are_segments() -> None:
    config = config_of("qwen3_moe") | {"num_hidden_layers": 7}

    def repeats(**changes: object) -> list[tuple[bool, int]]:
        model = FORMAT.read_config(config | changes, "config.json").model
        return [(s.layer.feed_forward.experts is not None, s.repeats) for s in model.segments]

    assert repeats(mlp_only_layers=[]) == [(True, 7)]
    assert repeats(mlp_only_layers=[0, 1, 6]) == [(False, 2), (True, 4), (False, 1)]
    assert repeats(mlp_only_layers=[], decoder_sparse_step=4) == [(False, 3), (True, 1), (False, 3)]
    assert repeats(mlp_only_layers=[], num_local_experts=0) == [(False, 7)]


def test_a_window_counts_only_if_it_is_switched_on() -> None:
    config = config_of("qwen3_moe") | {"sliding_window": 4}
    for switch, window in ((False, None), (True, 4)):
        data = config | {"use_sliding_window": switch}
        assert FORMAT.read_config(data, "config.json").model.layers[0].attention.window == window


def test_keys_that_say_what_the_family_always_does() -> None:
    config = config_of("qwen3_moe")
    plain = FORMAT.read_config(config, "config.json")
    coder = {"use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0}
    assert FORMAT.read_config(config | coder, "config.json") == plain
    with pytest.raises(InputError, match=r"matter: use_qk_norm \(False\)"):
        FORMAT.read_config(config | {"use_qk_norm": False}, "config.json")
