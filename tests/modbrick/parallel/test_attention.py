"""Attention over divided positions and heads gives what one device gives."""

from __future__ import annotations

import pytest

from tests.modbrick.parallel.device_process import reports_of


@pytest.mark.parametrize(
    "names",
    [
        ["packed, padded", "softmax"],
        pytest.param(
            ["whole rows", "window over three blocks", "window within a block"],
            marks=pytest.mark.verify,
        ),
    ],
    ids=", ".join,
)
def test_the_ring_and_the_gather_give_what_one_device_gives(names: list[str]) -> None:
    reports = reports_of("on_devices.py", "attention", *names)
    assert [report["name"] for report in reports] == [f"attention: {name}" for name in names]
    for report in reports:
        assert report["error"] < 2e-6, report
