"""The format of Llama."""

from __future__ import annotations

from typing import ClassVar

from modbrick.convert.families.llama import FORMAT
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import HEAD_REFUSALS, Refusals, config_of


class TestLlama(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        *HEAD_REFUSALS,
    ]


def test_buffers_of_early_releases_are_no_weights() -> None:
    assert FORMAT.ignored is not None
    assert FORMAT.ignored.fullmatch("model.layers.31.self_attn.rotary_emb.inv_freq")
    assert not FORMAT.ignored.fullmatch("model.layers.31.self_attn.q_proj.weight")


def test_keys_that_do_not_matter_are_left_aside() -> None:
    config = config_of("llama")
    plain = FORMAT.read_config(config, "config.json")
    more = {"pretraining_tp": 2, "use_cache": False, "temperature": 0.7, "eos_token_id": [2, 3]}
    assert FORMAT.read_config(config | more, "config.json") == plain
