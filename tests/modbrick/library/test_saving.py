"""A brick out of a checkpoint that a run of bricks has written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from modbrick.checkpoints import BaseModel, Metadata, save_model
from modbrick.data import ByteTokenizer
from modbrick.errors import InputError
from modbrick.library import Base, brick_of_run, read_brick, write_brick
from modbrick.library.manifest import attached_sites
from modbrick.parameters import nest
from tests.modbrick.bricks.tiny import BRICKS, MODEL
from tests.modbrick.library.tiny import FINGERPRINT, VALUES, described


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    metadata = Metadata(
        MODEL,
        run={"data": {"dataset": "ab", "seed": 3}, "training": {"initial_checkpoint": "secret"}},
        tokenizer=dataclasses.asdict(ByteTokenizer().identity),
        bricks=BRICKS,
        base=BaseModel("elsewhere", FINGERPRINT),
    )
    save_model(directory, nest(dict(VALUES)), metadata)
    return directory


@pytest.mark.parametrize("name", BRICKS)
def test_values_and_what_is_known_of_them(run: Path, name: str, tmp_path: Path) -> None:
    brick, manifest = brick_of_run(run, name, licence="MIT", tags=["a", "b"], notes="n")
    wanted, _ = described(name)
    assert brick.config == BRICKS[name]
    assert brick.values.keys() == wanted.values.keys()
    for address, value in brick.values.items():
        assert np.array_equal(value, wanted.values[address])
    assert manifest.name == name
    assert manifest.sites == attached_sites(MODEL, BRICKS[name])
    assert manifest.base == Base(MODEL, FINGERPRINT)
    assert manifest.tokenizer == ByteTokenizer().identity
    assert manifest.provenance.steps == 0
    assert manifest.provenance.data == {"dataset": "ab", "seed": 3}
    assert {"modbrick", "jax"} <= manifest.provenance.versions.keys()
    assert (manifest.licence, manifest.tags, manifest.notes) == ("MIT", ("a", "b"), "n")
    assert "secret" not in manifest.to_json()
    assert "elsewhere" not in manifest.to_json()
    write_brick(tmp_path / "a.brick", brick, manifest)
    assert read_brick(tmp_path / "a.brick")[1] == manifest


def test_which_brick_is_asked_for(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"several bricks: choose with --name=de\|law\|tone"):
        brick_of_run(run)
    with pytest.raises(InputError, match="holds no brick 'lwa'; did you mean 'law'"):
        brick_of_run(run, "lwa")
    with pytest.raises(InputError, match="no checkpoint"):
        brick_of_run(tmp_path, "law")
