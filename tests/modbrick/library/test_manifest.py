"""What a brick says about itself: read strictly, refused where it contradicts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modbrick.errors import InputError
from modbrick.library import manifest as manifest_module
from modbrick.library.manifest import read_manifest
from tests.modbrick.bricks.tiny import BRICKS
from tests.modbrick.library.tiny import described

Data = dict[str, Any]


def data_of(name: str) -> Data:
    return json.loads(described(name)[1].to_json())


@pytest.mark.parametrize("name", BRICKS)
def test_text_and_back(name: str) -> None:
    brick, manifest = described(name)
    assert read_manifest(manifest.to_json(), "here") == manifest
    assert {a: i.shape for a, i in manifest.leaves().items()} == {
        address: value.shape for address, value in brick.values.items()
    }


def rename(data: Data) -> None:
    data["name"] = "../escape"


def of_unknown_kind(data: Data) -> None:
    data["brick"]["settings"]["kind"] = "teapot"


def with_unknown_key(data: Data) -> None:
    data["licnce"] = "MIT"


def not_finite(data: Data) -> None:
    data["brick"]["settings"]["alpha"] = float("nan")


def of_a_newer_format(data: Data) -> None:
    data["format"], data["colour"] = 7, "red"


def without_format(data: Data) -> None:
    del data["format"]


def of_another_granularity(data: Data) -> None:
    data["granularity"] = "molecule"


def at_another_address(data: Data) -> None:
    data["sites"]["layer.x.attention.query"] = data["sites"].pop("layer.0.attention.query")


def without_width(data: Data) -> None:
    data["sites"]["head"]["output_width"] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"^here: '\.\./escape' is no name of a brick"),
        (of_unknown_kind, r"^here\.brick\.settings\.kind: 'teapot' is not one of"),
        (with_unknown_key, r"^here\.licnce: unknown key; did you mean 'licence'"),
        (not_finite, r"brick\.settings\.alpha: must be finite, got nan"),
        (of_a_newer_format, r"^here: a brick of format 7, written by modbrick \?; .* up to 1"),
        (without_format, r"^here: format: expected a version, got None"),
        (of_another_granularity, r"^here\.granularity: 'molecule' is not one of"),
        (at_another_address, r"sites\.layer\.x\.attention\.query: is no address of the site"),
        (without_width, r"sites\.head: widths must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Data], None], message: str) -> None:
    data = data_of("de")
    change(data)
    with pytest.raises(InputError, match=message):
        read_manifest(json.dumps(data), "here")


def test_a_key_that_stands_twice_is_refused() -> None:
    text = described("de")[1].to_json()
    with pytest.raises(InputError, match="'name' stands there twice"):
        read_manifest(text.replace('{"name": "de"', '{"name": "law", "name": "de"', 1), "here")


def test_an_older_format_is_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    def tags_were_labels(data: Data) -> Data:
        renamed = {"tags" if key == "labels" else key: value for key, value in data.items()}
        return renamed | {"format": 2}

    monkeypatch.setattr(manifest_module, "FORMAT", 3)
    monkeypatch.setitem(manifest_module.UPGRADES, 1, tags_were_labels)
    monkeypatch.setitem(manifest_module.UPGRADES, 2, lambda data: data | {"format": 3})
    data = data_of("de")
    data["labels"] = data.pop("tags")
    assert read_manifest(json.dumps(data), "here") == described("de", format=3)[1]
