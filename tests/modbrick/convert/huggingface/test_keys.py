"""Keys of configs that are left aside."""

from __future__ import annotations

import dataclasses

from modbrick.convert.families import granitemoe, jetmoe, llama, mistral, mixtral, olmoe, qwen3_moe
from modbrick.convert.huggingface.keys import IGNORED, REFUSED_IF_SET

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
