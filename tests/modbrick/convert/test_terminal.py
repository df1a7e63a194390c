"""Sizes that a user writes, and progress."""

from __future__ import annotations

import pytest

from modbrick.convert.terminal import byte_progress, byte_size
from modbrick.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5", 5),
        ("500MB", 500_000_000),
        ("2GiB", 2 << 30),
        ("1.5 kib", 1536),
        (" 0.5gb ", 5 * 10**8),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_size(text, "--size") == size


@pytest.mark.parametrize("text", ["", "5 bananas", "-1", "GB", "1e9", "5TB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=r"^--size=.*: expected a size such as 500MB or 2GiB"):
        byte_size(text, "--size")


def test_nothing_is_shown_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_progress("import", 10) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
