"""What ends a generated text: the word of the model's files, or its tokenizer's."""

from __future__ import annotations

from typing import Any

import pytest

from modbrick.data import ByteTokenizer
from modbrick.errors import InputError
from modbrick.inference.stopping import stop_tokens


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, {}, (256,)),
        (None, {"eos_token_id": None}, (256,)),
        (None, {"eos_token_id": 2}, (2,)),
        (None, {"eos_token_id": [2, 3, 2]}, (2, 3)),
        (b'{"eos_token_id": [5, 6]}', {"eos_token_id": 2}, (5, 6)),
        (b'{"eos_token_id": 7}', {}, (7,)),
        (b"{}", {"eos_token_id": 2}, (256,)),
        (b'{"eos_token_id": null}', {"eos_token_id": 2}, (256,)),
        (b'{"eos_token_id": []}', {}, ()),
    ],
)
def test_precedence(
    generation: bytes | None, config: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert stop_tokens(generation, config, "d", otherwise=ByteTokenizer()) == expected


@pytest.mark.parametrize("found", ['"</s>"', "[true]", "1.5", "{}"])
def test_what_is_no_id_is_refused(found: str) -> None:
    with pytest.raises(InputError, match=r"^d: eos_token_id is .*, expected ids"):
        stop_tokens(f'{{"eos_token_id": {found}}}'.encode(), {}, "d", otherwise=ByteTokenizer())
