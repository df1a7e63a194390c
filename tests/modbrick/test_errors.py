"""Errors say where they are, once."""

from __future__ import annotations

import pytest

from modbrick.errors import InputError, located


def test_messages_begin_with_the_place() -> None:
    for message in ("too wide", "a.json: too wide"):
        with pytest.raises(InputError, match=r"^a\.json: too wide$") as caught, located("a.json"):
            raise InputError(message)
        assert caught.value.__suppress_context__


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match=r"^broken$"), located("a.json"):
        raise ValueError("broken")
