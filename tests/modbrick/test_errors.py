"""Errors say where they are, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbrick.errors import InputError, listed, located, reason


def test_messages_begin_with_the_place() -> None:
    for message in ("too wide", "a.json: too wide"):
        with pytest.raises(InputError, match=r"^a\.json: too wide$") as caught, located("a.json"):
            raise InputError(message)
        assert caught.value.__suppress_context__


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match=r"^broken$"), located("a.json"):
        raise ValueError("broken")


def test_lists_are_short() -> None:
    assert listed([]) == ""
    assert listed(["a", 2], "; ") == "a; 2"
    assert listed(map(str, range(20))) == ", ".join(map(str, range(20)))
    many = listed((f"tensor {number}" for number in range(4608)), "; ")
    assert many.startswith("tensor 0; tensor 1; ")
    assert many.endswith("; tensor 19; and 4,588 more")
    assert len(listed(["x" * 10_000] * 100)) < 20 * 310


def test_a_reason_has_no_path_in_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere") as caught:
        (tmp_path / "nowhere").read_bytes()
    assert reason(caught.value) == "No such file or directory"
    assert reason(OSError("the link is another's")) == "the link is another's"
    assert reason(ValueError("broken")) == "broken"
