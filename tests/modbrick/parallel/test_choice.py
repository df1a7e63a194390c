"""Bricks chosen token by token give on a mesh what they give on one device."""

from __future__ import annotations

from tests.modbrick.parallel.device_process import reports_of


def test_bricks_of_every_kind_give_what_one_device_gives() -> None:
    reports = reports_of("on_devices.py", "bricks")
    names = [report["name"] for report in reports]
    kinds = ("lora", "lora", "dora", "adapter", "ia3", "bias", "norm")
    assert names == [f"bricks: {kind}" for kind in kinds]
    for report in reports:
        assert report["error"] < 2e-6, report
