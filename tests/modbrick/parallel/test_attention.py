"""Attention over divided positions and heads gives what one device gives."""

from __future__ import annotations

from tests.modbrick.parallel.device_process import reports_of


def test_the_ring_and_the_gather_give_what_one_device_gives() -> None:
    reports = reports_of("on_devices.py", "attention")
    assert len(reports) == 5
    for report in reports:
        assert report["error"] < 2e-6, report
