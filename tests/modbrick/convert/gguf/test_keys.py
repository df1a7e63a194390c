"""Metadata by typed keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modbrick.convert.gguf.keys import Keys
from modbrick.errors import InputError


def keys(**metadata: Any) -> Keys:
    return Keys({f"llama.{name}": value for name, value in metadata.items()}, "llama.", "file")


def test_values_by_type() -> None:
    found = keys(count=3, number=2, text="a", flag=True)
    assert found.count("count") == 3
    assert found.number("number") == 2
    assert found.text("text") == "a"
    assert found.flag("flag")


def test_defaults() -> None:
    assert keys().count("x", 0) == 0
    assert keys().number("x", 0.5) == 0.5
    assert keys().text("x", "") == ""
    assert keys().flag("x", False) is False


def test_numbers_are_the_decimals_that_were_meant() -> None:
    for number in (1e-5, 1e-6, 0.1, 500_000.0, 1.0):
        assert keys(x=float(np.float32(number))).number("x") == number
    assert keys(x=0.1).number("x") == 0.1
    assert keys(x=1 + 1e-12).number("x") == 1 + 1e-12


WRONG: list[tuple[Callable[[Keys], object], Any, str]] = [
    (lambda k: k.count("x"), -1, "llama.x is -1; expected a count"),
    (lambda k: k.count("x"), True, "llama.x is True; expected a count"),
    (lambda k: k.count("x"), 1.0, "llama.x is 1.0; expected a count"),
    (lambda k: k.count("x"), np.arange(3), "llama.x is an array of 3 values; expected a count"),
    (lambda k: k.number("x"), "1", "llama.x is '1'; expected a number"),
    (lambda k: k.number("x"), float("nan"), "llama.x is nan; expected a number"),
    (lambda k: k.number("x"), True, "llama.x is True; expected a number"),
    (lambda k: k.text("x"), 1, "llama.x is 1; expected a text"),
    (lambda k: k.flag("x"), 1, "llama.x is 1; expected true or false"),
]


@pytest.mark.parametrize(("read", "value", "message"), WRONG)
def test_other_types_are_refused(read: Callable[[Keys], object], value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^file: {message}$"):
        read(keys(x=value))
    with pytest.raises(InputError, match=r"^file: llama.x is missing$"):
        read(keys())


def test_long_values_are_not_repeated() -> None:
    with pytest.raises(InputError) as caught:
        keys(x="a\n" * 10_000).count("x")
    assert len(str(caught.value)) < 120
    assert "\n" not in str(caught.value)


def test_other_keys_are_named() -> None:
    found = keys(known=1, unknown=2, another=3)
    found.refuse_others(["known", "unknown", "another", "absent"])
    keys(nextn_predict_layers=0, residual_scale=0.0, parallel=False).refuse_others([])
    named = r"not supported: llama.another, llama.unknown \(if .* --ignore_keys"
    with pytest.raises(InputError, match=named):
        found.refuse_others(["known"])
