"""Dispatch over a mesh gives what one device gives, however the load lies; drops are counted."""

from __future__ import annotations

from tests.modbrick.parallel.device_process import reports_of

LOADS = ("balanced", "one takes all", "empty experts")


def test_every_way_and_load_gives_what_one_device_gives() -> None:
    reports = {r["name"]: r for r in reports_of("on_devices.py", "dispatch")}
    capacity = reports.pop("dispatch: capacity")
    assert set(reports) == {
        f"dispatch: {way}, {load}" for way in ("gather", "exchange") for load in LOADS
    }
    for report in reports.values():
        assert report["error"] < 1e-6, report
        assert report["dropped"] == 0, report
    assert capacity["dropped"] == 60, "30 of 40 in each of two groups"
