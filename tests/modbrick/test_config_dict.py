"""Config dicts hold every key, and read back to the record they came from."""

from __future__ import annotations

import pytest

from configs.quickstart import get_config
from modbrick.config_dict import to_config_dict
from modbrick.schema import from_mapping
from modbrick.training.run_config import RunConfig


def test_a_run_reads_back_equal() -> None:
    run = get_config()
    assert from_mapping(RunConfig, to_config_dict(run).to_dict()) == run


def test_values_that_are_none_can_be_set_to_their_type() -> None:
    config = to_config_dict(get_config())
    config.training.initial_checkpoint = "somewhere"
    config.evaluation.max_tokens = 5
    run = from_mapping(RunConfig, config.to_dict())
    assert run.training.initial_checkpoint == "somewhere"
    assert run.evaluation.max_tokens == 5
    with pytest.raises(TypeError):
        config.evaluation.batch_size = "many"


def test_a_misspelt_key_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(AttributeError, match="learning_rate"):
        to_config_dict(get_config()).optimizer.learning_rat = 1.0
