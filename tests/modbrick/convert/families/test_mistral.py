"""The format of Mistral."""

from __future__ import annotations

from typing import ClassVar

from modbrick.convert.families.mistral import FORMAT
from tests.contracts.transformers_family import TransformersFamily
from tests.contracts.transformers_parity import HEAD_REFUSALS, Refusals, config_of


class TestMistral(TransformersFamily):
    form = FORMAT
    # The original never gives Mistral a bias, whatever a config says.
    refusals: ClassVar[Refusals] = [
        *HEAD_REFUSALS,
        ({"sliding_window": 0}, "window must be at least 1, got 0"),
        ({"attention_bias": True}, r"attention_bias \(True\)"),
    ]


def test_no_window_and_the_default_window_differ() -> None:
    config = config_of("mistral")
    windows = [
        FORMAT.read_config(data, "config.json").model.layers[0].attention.window
        for data in (
            config | {"sliding_window": None},
            {key: value for key, value in config.items() if key != "sliding_window"},
        )
    ]
    assert windows == [None, 4096]
