"""Files of metrics: records that come back, TensorBoard's events, and both after a kill."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from modbrick.training.observe.metrics import METRICS_FILE, MetricsWriter, read_metrics
from modbrick.training.observe.window import MetricsWindow
from modbrick.training.tasks.task import Work
from tests.modbrick.training.observe.steps import statistics, step_metrics


def write(directory: Path, *records: dict[str, Any], start_step: int = 0) -> None:
    with MetricsWriter(str(directory), start_step=start_step, tensorboard=False) as writer:
        for record in records:
            writer.write(record)


def test_records_come_back_and_those_after_the_start_are_dropped(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1 / step, "run": 1} for step in (2, 4, 6, 8)]
    write(tmp_path, *records)
    assert read_metrics(str(tmp_path)) == records
    again = [{"step": step, "loss": 0.5, "run": 2} for step in (6, 8)]
    write(tmp_path, *again, start_step=4)
    assert read_metrics(str(tmp_path)) == records[:2] + again
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_each_record_can_be_read_at_once(tmp_path: Path) -> None:
    with MetricsWriter(str(tmp_path), tensorboard=False) as writer:
        for step in (1, 2, 3):
            writer.write({"step": step})
            assert [r["step"] for r in read_metrics(str(tmp_path))] == list(range(1, step + 1))


def test_a_line_cut_off_by_a_kill_is_left_out_and_then_replaced(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1}, {"step": 2, "text": "two"})
    path = tmp_path / METRICS_FILE
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_metrics(str(tmp_path)) == [{"step": 1}]
    write(tmp_path, {"step": 2}, start_step=1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert read_metrics(str(tmp_path / "nowhere")) == []


def test_old_records_stay_whole_if_the_start_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"step": 1}, {"step": 2})
    before = (tmp_path / METRICS_FILE).read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(epath.Path(tmp_path)), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(str(tmp_path), start_step=1, tensorboard=False)
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_numbers_without_a_word_in_json_become_null(tmp_path: Path) -> None:
    nested = {"load": [0.5, math.inf], "deeper": [{"x": -math.inf}]}
    write(tmp_path, {"step": 1, "loss": math.nan, "routers": nested, "name": "nan"})
    text = (tmp_path / METRICS_FILE).read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_metrics(str(tmp_path)) == [
        {
            "step": 1,
            "loss": None,
            "routers": {"load": [0.5, None], "deeper": [{"x": None}]},
            "name": "nan",
        }
    ]


def events(directory: Path) -> dict[tuple[str, int], float]:
    """The scalars in TensorBoard's event files, by name and step.

    A record is its length (8 bytes), a checksum (4), the event, and another checksum (4).
    """
    found = {}
    for path in (directory / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_gets_every_number_by_layer_too(tmp_path: Path) -> None:
    window = MetricsWindow(1.0, max_skipped=3)
    metrics = step_metrics(2.0, routers={"segments.0.attention": statistics(0)})
    window.add(metrics, Work(1, 1.0))
    record = window.record(5)
    with MetricsWriter(str(tmp_path)) as writer:
        writer.write(record)
        writer.write({"step": 6, "evaluation": {"loss": 3.0, "domains": {"code": {"loss": 4.0}}}})
    found = events(tmp_path)
    assert found["next_token", 5] == 4.0
    assert found["evaluation/loss", 6] == 3.0
    assert found["evaluation/domains/code/loss", 6] == 4.0
    router = "routers/segments.0.attention"
    health = record["routers"]["segments.0.attention"]
    assert found[f"{router}/load_entropy", 5] == pytest.approx(health["load_entropy"])
    for layer, share in enumerate(health["layers"]["largest_share"]):
        assert found[f"{router}/layers/largest_share/layer_{layer}", 5] == pytest.approx(share)
    assert not any(name == "step" or "seconds_per_step" in name for name, _ in found)
