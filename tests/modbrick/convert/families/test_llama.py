"""The format of Llama."""

from __future__ import annotations

from typing import ClassVar

from modbrick.convert.families.llama import FORMAT
from modbrick.convert.registry import FORMATS
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import HEAD_REFUSALS, Refusals, config_of


class TestLlama(TransformersFamily):
    form = FORMAT
    refusals: ClassVar[Refusals] = [
        *HEAD_REFUSALS,
    ]


def test_buffers_of_early_releases_are_no_weights() -> None:
    for form in FORMATS.values():
        if form.container == "directory" and form.name != "moduleformer":
            assert form.ignored is not None
            for module in ("model.layers.31.self_attn.", "layers.0.self_attention.", "model.", ""):
                for buffer in ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached"):
                    assert form.ignored.fullmatch(f"{module}rotary_emb.{buffer}"), form.name
            assert not form.ignored.fullmatch("model.layers.31.self_attn.q_proj.weight")


def test_keys_that_do_not_matter_are_left_aside() -> None:
    config = config_of("llama")
    plain = FORMAT.read_config(config, "config.json")
    more = {"pretraining_tp": 2, "use_cache": False, "temperature": 0.7, "eos_token_id": [2, 3]}
    assert FORMAT.read_config(config | more, "config.json") == plain
