"""What is listed of bricks in files, libraries and models, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest
from rich.console import Console

from modbrick.analysis.listing import Listing, of_check, of_path
from modbrick.bricks import initial_bricks
from modbrick.checkpoints import BaseModel, Metadata, save_model
from modbrick.errors import InputError
from modbrick.library import Library, write_brick
from modbrick.models import open_model
from tests.modbrick.bricks.tiny import BRICKS, MODEL
from tests.modbrick.library.tiny import FINGERPRINT, described


def text(found: Listing) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(found.shown)
    return capture.get()


def test_a_brick_in_a_file(tmp_path: Path) -> None:
    _, manifest = described("de", notes="[red] of [/nothing]")
    write_brick(tmp_path / "a.brick", described("de")[0], manifest)
    found = of_path(str(tmp_path / "a.brick"))
    shown = text(found)
    for words in ("lora", "rank 2, alpha 4.0", "Apache-2.0", "[red] of [/nothing]", "loss 1.5"):
        assert words in shown
    # Layers of equal widths together.
    for name, widths in (("layer.0-2.attention.query", "16"), ("layer.1-2.attention.key", "16")):
        (line,) = [line for line in shown.splitlines() if name in line and "│" in line][-1:]
        assert line.split("│")[2].strip() == widths
    record = json.loads(json.dumps(found.record))
    assert record["name"] == "de"
    assert record["base"] == {"fingerprint": FINGERPRINT}
    assert record["sites"]["head"]["output_width"] == 31


def test_a_library(tmp_path: Path) -> None:
    for name in ("law", "de"):
        write_brick(tmp_path / f"{name}.brick", *described(name, tags=("[x]",)))
    found = of_path(str(tmp_path))
    assert [entry["name"] for entry in found.record["bricks"]] == ["de", "law"]
    assert "[x]" in text(found)
    assert len(Library.open(tmp_path)) == 2


def test_a_model_and_its_bricks(tmp_path: Path) -> None:
    values = initial_bricks(MODEL, BRICKS, jax.random.key(0))
    about = Metadata(MODEL, bricks=BRICKS, base=BaseModel("elsewhere", FINGERPRINT))
    save_model(tmp_path, values, about)
    found = of_path(str(tmp_path))
    assert list(found.record["customized"]) == list(BRICKS)
    experts = {
        "pattern": "layer.*.feed_forward.expert.*",
        "bricks": 12,
        "active": 6,
        "parameters": 2 * 16 * 16,
    }
    assert experts in json.loads(json.dumps(found.record))["emergent"]
    assert "customized bricks" in text(found)
    with pytest.raises(InputError, match="no checkpoint"):
        of_path(str(tmp_path / "nowhere"))
    write_brick(tmp_path / "a.brick", *described("de"))
    with pytest.raises(InputError, match="holds bricks for a model"):
        of_check(str(tmp_path / "a.brick"), open_model(tmp_path))


def test_a_complaint_comes_after_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json, wanted in ((True, '{"a": 1}\n'), (False, "shown\n")):
        with pytest.raises(InputError, match="too bad"):
            Listing("shown", {"a": 1}, "too bad").show(as_json=as_json)
        assert capsys.readouterr().out == wanted
