"""Settings beside a tokenizer: precedence of the files, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modbrick.data.tokenizers.settings import (
    ADDED,
    CONFIG,
    SPECIAL,
    TokenizerSettings,
    read_settings,
)
from modbrick.errors import InputError


def settings(**files: Any) -> TokenizerSettings:
    names = {"config": CONFIG, "special": SPECIAL, "added": ADDED}
    return read_settings({names[n]: json.dumps(c).encode() for n, c in files.items()}, "there")


def test_nothing_is_said_without_files() -> None:
    found = settings()
    assert (found.kind, found.named, found.added, found.add_start) == (None, {}, (), None)


def test_the_map_of_special_tokens_wins_until_the_config_numbers_them() -> None:
    config: dict[str, Any] = {"eos_token": "a", "tokenizer_class": "GPT2TokenizerFast"}
    assert settings(config=config, special={"eos_token": "b"}).named == {"eos_token": "b"}
    config["added_tokens_decoder"] = {"7": {"content": "a", "special": False}}
    found = settings(config=config, special={"eos_token": "b"}, added={"c": 1})
    assert found.named == {"eos_token": "a"}
    assert found.ids == {"a": 7}
    assert found.added[0].special, "for it has a role"
    assert found.kind == "GPT2Tokenizer"


def test_added_tokens_come_by_id_and_named_ones_are_special() -> None:
    found = settings(config={"pad_token": "p", "bos_token": None}, added={"y": 9, "p": 8, "x": 7})
    assert [token.content for token in found.added][:3] == ["x", "p", "y"]
    assert [token.special for token in found.added][:3] == [False, True, False]
    assert [token.normalized for token in found.added][:3] == [True, False, True]
    assert found.named == {"pad_token": "p"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {"eos_token": 3}}, "there: eos_token is no token"),
        ({"config": {"eos_token": {"content": "a", "lstrip": 1}}}, "eos_token is no token"),
        ({"config": {"eos_token": ""}}, "eos_token is no token"),
        ({"config": {"added_tokens_decoder": []}}, "added_tokens_decoder is \\[\\], expected an"),
        ({"config": {"added_tokens_decoder": {"x": {"content": "a"}}}}, "id .* is 'x', no number"),
        ({"config": {"additional_special_tokens": 3}}, "extra special tokens are 3"),
        ({"config": {"add_bos_token": "yes"}}, "add_bos_token is 'yes', expected true or false"),
        ({"added": {"a": "b"}}, "id .* is 'b', no number"),
    ],
)
def test_what_is_refused(files: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**files)
