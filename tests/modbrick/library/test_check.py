"""Whether a brick fits a model: everything that does not is named at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from modbrick.config import SegmentConfig
from modbrick.data import TokenizerIdentity
from modbrick.errors import InputError
from modbrick.library import check, write_brick
from modbrick.library.check import read_fitting
from tests.modbrick.bricks.tiny import BRICKS, MODEL
from tests.modbrick.library.tiny import KnownModel, described

OTHER_TOKENIZER = TokenizerIdentity("words", "00ff" * 16, 31, None, None)


@pytest.mark.parametrize("name", BRICKS)
def test_a_brick_fits_its_model(name: str) -> None:
    assert check(described(name)[1], KnownModel()) == []
    assert check(described(name, base=None)[1], KnownModel(weights="other")) == []
    assert check(described(name, tokenizer=None)[1], KnownModel(tokenizer=OTHER_TOKENIZER)) == []
    assert check(described(name)[1], KnownModel(tokenizer=None)) == []


def test_every_mismatch_is_listed() -> None:
    wide = dataclasses.replace(MODEL.segments[0].layer, norm=MODEL.norm)
    model = KnownModel(
        MODEL.replace(vocabulary=37, segments=(SegmentConfig(wide, 4),)),
        weights="other",
        tokenizer=OTHER_TOKENIZER,
    )
    remarks = check(described("de")[1], model)
    assert remarks[:2] == [
        "layer.3.attention.query: the brick has nothing for it",
        "head: the brick is for widths 16 and 31, the model has 16 and 37",
    ]
    assert remarks[2].startswith(
        "it was trained on other weights than those of somewhere, of another model (vocabulary: 31"
    )
    assert remarks[3].startswith("the tokenizer of the brick (bytes) is not the one of somewhere")
    assert len(remarks) == 4
    assert check(described("de")[1], model, allow_base="any") == [*remarks[:2], remarks[3]]


def test_a_model_without_the_site() -> None:
    shallow = MODEL.replace(segments=(SegmentConfig(MODEL.segments[0].layer, 1),))
    (remark,) = check(described("de")[1], KnownModel(shallow))
    assert "no site 'layer.1-2.attention.key'" in remark
    _, manifest = described("gain")
    deeper = [address for address in manifest.sites if not address.startswith("layer.0.")]
    assert "layer.2.attention.value" in deeper
    remarks = check(manifest, KnownModel(shallow))
    assert remarks == [f"{address}: the model has no such site" for address in deeper]


def test_other_weights_are_refused_unless_allowed(tmp_path: Path) -> None:
    file = tmp_path / "a.brick"
    write_brick(file, *described("de"))
    model = KnownModel(weights="other")
    with pytest.raises(InputError, match=r"a\.brick does not fit somewhere: .*--allow_base=any"):
        read_fitting([file], model)
    assert list(read_fitting([file], model, allow_base="any")) == ["de"]
    with pytest.raises(InputError, match="allow_base: 'all' is not one of"):
        read_fitting([file], model, allow_base="all")


def test_two_of_one_name(tmp_path: Path) -> None:
    for file, name in (("a.brick", "de"), ("b.brick", "law"), ("c.brick", "de")):
        write_brick(tmp_path / file, *described(name))
    files = [tmp_path / name for name in ("b.brick", "a.brick", "c.brick")]
    assert list(read_fitting(files[:2], KnownModel())) == ["law", "de"]
    with pytest.raises(InputError, match=r"two bricks are named de, in .*a\.brick and in .*c\."):
        read_fitting(files, KnownModel())
    with pytest.raises(InputError, match=r"two bricks are named law, in RUN and in .*b\.brick"):
        read_fitting(files, KnownModel(), taken={"law": "RUN"})
