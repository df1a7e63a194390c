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


def test_what_stands_in_front_of_softmax_attention_is_that_of_one_device() -> None:
    """Of stick-breaking attention, and its ring, `test_equality.py` says it."""
    (report,) = reports_of("on_devices.py", "memory")
    assert report["name"] == "memory: softmax"
    assert report["error"] < 1e-5, report
