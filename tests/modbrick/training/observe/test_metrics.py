"""Records of a run: what they hold, when training has diverged, and files that survive a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from modbrick.config.families import moduleformer
from modbrick.flops import training_flops
from modbrick.layers.router import RouterStatistics
from modbrick.optimizer import OptimizerMetrics
from modbrick.training.observe.metrics import (
    METRICS_FILE,
    DivergedError,
    MetricsWindow,
    MetricsWriter,
    read_metrics,
    useful_flops,
)
from modbrick.training.observe.router_health import RouterHealth
from modbrick.training.step import StepReport

MODEL = moduleformer(
    vocabulary=37,
    width=16,
    layers=2,
    heads=2,
    attention_width=8,
    feed_forward_width=12,
    attention_experts=3,
    feed_forward_experts=4,
    router_width=8,
)


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("modbrick.training.observe.metrics.time", clock)
    return clock


def statistics(seed: int) -> RouterStatistics:
    choices = np.random.default_rng(seed).integers(0, 9, (2, 4)).astype(np.float32)
    tokens = jnp.asarray(choices.sum(-1) / 2)
    counts = jnp.asarray(choices)
    return RouterStatistics(tokens, counts, counts, counts / 2, tokens, tokens, tokens)


def report(
    loss: float = 1.0, in_a_row: int = 0, routers: dict[str, RouterStatistics] | None = None
) -> StepReport:
    return StepReport(
        loss=jnp.float32(loss),
        parts={"next_token": jnp.float32(2 * loss), "switch": jnp.float32(-loss)},
        targets=jnp.float32(1),
        router_statistics=routers or {},
        optimizer=OptimizerMetrics(
            gradient_norm=jnp.float32(loss / 4),
            learning_rate=jnp.float32(loss / 8),
            skipped=jnp.bool_(in_a_row > 0),
            skipped_total=jnp.int32(in_a_row),
            skipped_in_a_row=jnp.int32(in_a_row),
        ),
    )


# ------------------------------------------------------------------------------------------ window


def test_a_record_is_means_of_losses_and_health_of_summed_routers() -> None:
    window = MetricsWindow(1.0, max_skipped=3)
    found = [statistics(seed) for seed in range(3)]
    losses = [3.0, 1.0, 0.5]
    for loss, of_step in zip(losses, found, strict=True):
        window.add(report(loss, routers={"segments.0.attention": of_step}), 1, 1.0)
    record = window.record(3)
    assert record["step"] == 3
    assert record["loss"] == pytest.approx(np.mean(losses))
    assert record["next_token"] == pytest.approx(2 * np.mean(losses))
    assert record["switch"] == pytest.approx(-np.mean(losses))
    assert record["gradient_norm"] == 0.125  # of the last step
    assert record["learning_rate"] == 0.0625
    total = jax.tree.map(lambda *parts: sum(parts), *found)
    expected = RouterHealth.from_statistics(total).to_mapping()
    assert record["routers"] == {"segments.0.attention": expected}
    assert record["dropped_choices"] == pytest.approx(float(np.sum(total.dropped)))
    assert json.loads(json.dumps(record)) == record
    window.add(report(7.0), 1, 1.0)
    assert window.record(4)["loss"] == 7.0, "a record starts anew"


def test_rates_leave_out_the_first_step_and_what_is_no_training(clock: Clock) -> None:
    window = MetricsWindow(flops_per_second=100.0, max_skipped=3)
    clock.now += 1000  # compiles
    window.add(report(), 999, 1e9)
    for _ in range(2):
        clock.now += 2
        window.add(report(), 10, 40.0)
    with window.paused():
        clock.now += 500
    record = window.record(3)
    assert record["seconds_per_step"] == 2.0
    assert record["tokens_per_second"] == 5.0
    assert record["utilisation"] == pytest.approx(80 / 4 / 100)
    clock.now += 8
    window.add(report(), 16, 80.0)
    record = window.record(4)
    assert (record["seconds_per_step"], record["tokens_per_second"]) == (8.0, 2.0)


def test_a_record_of_the_first_step_alone_has_no_rate(clock: Clock) -> None:
    window = MetricsWindow(1.0, max_skipped=3)
    window.add(report(), 10, 1.0)
    clock.now += 1
    record = window.record(1)
    assert (record["seconds_per_step"], record["tokens_per_second"]) == (None, 0.0)


def test_devices_wait_for_data_only_while_nothing_runs(clock: Clock) -> None:
    class Running:
        def is_ready(self) -> bool:
            return False

    def batches() -> Iterator[int]:
        while True:
            clock.now += 3
            yield 7

    source, window = batches(), MetricsWindow(1.0, max_skipped=3)
    assert window.fetch(source) == (7, 3.0)
    window.add(report(), 10, 1.0)
    clock.now += 1
    assert window.record(1)["data_wait_seconds"] == 0.0, "before the first step is no window's"
    for step in (2, 3):
        assert window.fetch(source) == (7, 3.0)
        window.add(report(), 10, 1.0)
        assert window.fetch(source) == (7, 3.0)
        window.add(report(), 10, 1.0)
        assert window.record(step)["data_wait_seconds"] == 6.0
    window.add(dataclasses.replace(report(), loss=Running()), 10, 1.0)  # type: ignore[arg-type]
    assert window.fetch(source) == (7, 0.0)


def longest_streak(skips: list[bool]) -> int:
    longest = streak = 0
    for skipped in skips:
        streak = streak + 1 if skipped else 0
        longest = max(longest, streak)
    return longest


def diverges(steps: list[tuple[bool, bool]], limit: int) -> bool:
    window = MetricsWindow(1.0, max_skipped=limit)
    streak = 0
    try:
        for step, (skipped, recorded) in enumerate(steps, 1):
            streak = streak + 1 if skipped else 0
            window.add(report(in_a_row=streak), 1, 1.0)
            if recorded or step == len(steps):
                window.record(step)
    except DivergedError:
        return True
    return False


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=10))
def test_too_many_skips_in_a_row_stop_training_wherever_records_lie(
    steps: list[tuple[bool, bool]],
) -> None:
    assert diverges(steps, 2) == (longest_streak([skipped for skipped, _ in steps]) >= 2)


def test_divergence_is_told_one_step_later_and_with_a_remedy() -> None:
    window = MetricsWindow(1.0, max_skipped=2)
    for streak in (1, 2):
        window.add(report(in_a_row=streak), 1, 1.0)
    with pytest.raises(DivergedError, match=r"2 updates in a row .*optimizer\.learning_rate"):
        window.add(report(), 1, 1.0)


# -------------------------------------------------------------------------------- useful operations


def packed(lengths: list[int], slots: int) -> dict[str, np.ndarray]:
    """One row of documents, the rest of its slots padding."""
    segments, positions = np.zeros((2, 1, slots), np.int32)
    segments[0, : sum(lengths)] = np.repeat(np.arange(len(lengths)) + 1, lengths)
    positions[0, : sum(lengths)] = np.concatenate([np.arange(n) for n in lengths])
    return {"segment_ids": segments, "positions": positions}


def test_useful_operations_are_those_of_each_document_on_its_own() -> None:
    lengths = [3, 9, 1, 5]
    apart = [useful_flops(MODEL, packed([n], n)) for n in lengths]
    assert useful_flops(MODEL, packed(lengths, 18)) == pytest.approx(sum(apart))
    assert useful_flops(MODEL, packed(lengths, 40)) == pytest.approx(sum(apart)), "padding is none"
    assert useful_flops(MODEL, packed([18], 18)) > sum(apart), "more keys are seen"
    assert useful_flops(MODEL, packed([18], 18)) == pytest.approx(18 * training_flops(MODEL, 9.5))


def test_a_batch_of_padding_has_no_useful_operations() -> None:
    nothing = np.zeros((2, 4), np.int32)
    assert useful_flops(MODEL, {"segment_ids": nothing, "positions": nothing}) == 0.0


# ------------------------------------------------------------------------------------------- files


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
    window.add(report(2.0, routers={"segments.0.attention": statistics(0)}), 1, 1.0)
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
