"""The rate that utilisation is measured against."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import pytest

from modbrick import hardware


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The only device of this machine, of any kind; a measurement of it says 7."""
    device = SimpleNamespace(device_kind="cpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(hardware, "measured_flops", lambda: 7.0)
    hardware.peak_flops.cache_clear()
    yield device
    hardware.peak_flops.cache_clear()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v4", 275e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v5 lite", 197e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
    ],
)
def test_known_devices_are_looked_up(device: SimpleNamespace, kind: str, expected: float) -> None:
    device.device_kind = kind
    assert hardware.peak_flops() == expected


@pytest.mark.parametrize("kind", ["cpu", "TPU v2", "NVIDIA T4", "A100"])
def test_unknown_devices_are_measured(device: SimpleNamespace, kind: str) -> None:
    device.device_kind = kind
    assert hardware.peak_flops() == 7.0


def test_a_measurement_is_the_rate_of_the_best_product(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])  # products of 4, 2 and 3 seconds
    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert hardware.measured_flops(size=8, repeats=3) == 2 * 8**3 / 2.0
    assert next(times, None) is None


def test_a_real_measurement_is_a_rate() -> None:
    rate = hardware.measured_flops(size=128, repeats=2)
    assert math.isfinite(rate)
    assert rate > 1e6


def test_a_machine_is_described_in_json() -> None:
    found = hardware.describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"date", "machine", "versions"}
    assert set(found["machine"]) == {"processor", "cores", "devices"}
    assert set(found["versions"]) == {"python", "jax"}
    datetime.date.fromisoformat(found["date"])
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["machine"]["devices"] == ["cpu"]
    assert found["versions"]["jax"] == jax.__version__
