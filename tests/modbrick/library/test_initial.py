"""Values that bricks of a run begin with, out of files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import Brick, BrickConfig, LoRA
from modbrick.checkpoints import Metadata, save_model
from modbrick.decoder.functional import initial_parameters
from modbrick.errors import InputError
from modbrick.library import Manifest, write_brick
from modbrick.library.initial import read_initial
from modbrick.models import StoredModel, open_model
from tests.modbrick.bricks.tiny import MODEL, random_bricks

LORA = BrickConfig(("layer.*.attention.query", "head"), LoRA(rank=2, alpha=4.0))
VALUES = random_bricks({"german": LORA})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StoredModel:
    directory = tmp_path_factory.mktemp("model") / "model"
    save_model(directory, initial_parameters(MODEL, jax.random.key(0)), Metadata(MODEL))
    return open_model(directory)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A brick with values in bfloat16."""
    brick = Brick.of_parameters("german", LORA, MODEL, VALUES)
    halves = {address: value.astype(jnp.bfloat16) for address, value in brick.values.items()}
    path = tmp_path / "german.brick"
    write_brick(path, Brick(LORA, halves), Manifest.of("german", LORA, MODEL))
    return path


def test_values_come_under_the_name_in_the_run(model: StoredModel, file: Path) -> None:
    """Other patterns of the same sites, and another dropout, make no other brick."""
    same = BrickConfig(("head", "layer.0-2.attention.query"), LoRA(2, 4.0, dropout=0.1))
    found = read_initial({"de": file}, {"de": same, "law": LORA}, model)
    assert found.keys() == {path.replace("german", "de") for path in VALUES}
    for path, value in VALUES.items():
        actual = found[path.replace("german", "de")]
        assert actual.dtype == jnp.float32
        np.testing.assert_array_equal(actual, value.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BrickConfig(LORA.at, LoRA(rank=2)), r"settings\.alpha: 4\.0 -> null"),
        (BrickConfig(LORA.at, LoRA(rank=3, alpha=4.0)), r"settings\.rank: 2 -> 3"),
        (BrickConfig(LORA.at[:1], LORA.settings), "head: the run does not attach it there"),
        (
            BrickConfig((*LORA.at, "layer.1.attention.key"), LORA.settings),
            r"layer\.1\.attention\.key: it has nothing for it",
        ),
    ],
)
def test_another_brick_is_refused(
    model: StoredModel, file: Path, config: BrickConfig, message: str
) -> None:
    with pytest.raises(InputError, match=rf"is no start of bricks\.de on .*{message}"):
        read_initial({"de": file}, {"de": config}, model)


def test_another_model_is_refused(model: StoredModel, file: Path) -> None:
    wider = dataclasses.replace(model, config=MODEL.replace(vocabulary=32))
    with pytest.raises(InputError, match="head: the brick is for widths 16 and 31"):
        read_initial({"de": file}, {"de": LORA}, wider)
