"""Configs of runs that train bricks on whatever model they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
from absl import flags

from modbrick.bricks import LoRA
from modbrick.bricks.attachment import attachments
from modbrick.config.families import moduleformer
from modbrick.config.files import read_config_file
from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError
from modbrick.models import open_model
from modbrick.training.adaptation import with_model
from modbrick.training.run_config import RunConfig
from tests.configs import tiny

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/bricks").glob("*.py"))
MODEL = ROOT / "tests/fixtures/moduleformer/molm_like"


def flagged(*arguments: str) -> RunConfig | None:
    """The config that a command line means."""
    values, argv = flags.FlagValues(), ["script", *arguments]
    config = DEFINE_config("config", RunConfig, complete=with_model, flag_values=values, argv=argv)
    values(argv)
    return config.value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_bricks_of_a_config_fit_models_with_and_without_experts(path: Path) -> None:
    bricks = read_config_file(str(path), RunConfig).bricks
    assert f"--config=configs/bricks/{path.name}" in path.read_text()
    sparse = moduleformer(
        vocabulary=8, width=8, layers=1, heads=2, attention_width=8, feed_forward_width=8,
        attention_experts=2, feed_forward_experts=2, router_width=4,
    )  # fmt: skip
    for model in (sparse, tiny.get_config().model):
        for brick in bricks.values():
            assert attachments(model, brick)


def test_the_model_is_that_of_the_checkpoint() -> None:
    config = flagged(
        f"--config={ROOT}/configs/bricks/lora.py",
        f"--config.training.initial_checkpoint={MODEL}",
        "--config.bricks.lora.settings.rank=4",
    )
    assert config is not None
    assert config.model == open_model(MODEL).config
    assert config.bricks["lora"].settings == LoRA(rank=4, alpha=16.0)


def test_a_model_that_is_named_stays() -> None:
    config = tiny.get_config()
    assert with_model(config) is config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "leaves the model open: set training.initial_checkpoint"),
        (["--config.training.initial_checkpoint=nowhere"], "nowhere"),
    ],
)
def test_a_model_that_is_not_there_is_told(more: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        flagged(f"--config={ROOT}/configs/bricks/lora.py", *more)
