"""Logs on a disk that fails: said once, never a traceback, never a hang."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from modbrick.errors import InputError
from modbrick.training.observe.metrics import METRICS_FILE, MetricsWriter, read_metrics
from modbrick.training.observe.timeline import TIMELINE_FILE, Timeline, read_timeline
from tests import remote_store
from tests.faults import FAULTS, broken, within

SECONDS = 30.0


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def files_named(lines: list[str], workdir: Path) -> list[str]:
    """Files that the lines are about; each is one line, for one file."""
    assert all("\n" not in line and "training goes on" in line for line in lines)
    return sorted(line.split(" cannot be written")[0].removeprefix(f"{workdir}/") for line in lines)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_amid_training_is_said_once_and_training_goes_on(
    workdir: Path, fault: str
) -> None:
    lines: list[str] = []
    numbers = {f"number_{i}": 1.5 for i in range(300)}

    def train() -> None:
        with MetricsWriter(workdir, warn=lines.append) as writer:
            writer.write({"step": 1})
            with broken(workdir, fault):
                for step in range(2, 60):
                    writer.write({"step": step, **numbers})

    within(SECONDS, train)
    expected = {
        "no space": [METRICS_FILE, "tensorboard"],
        "vanished": [METRICS_FILE],  # the file of events is open, and nowhere any more
        "no permission": [],
        "read-only": [],
    }
    assert files_named(lines, workdir) == expected[fault]
    if fault != "vanished":
        steps = [record["step"] for record in read_metrics(workdir)]
        assert steps == ([1] if fault == "no space" else list(range(1, 60)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_timeline_that_fails_is_said_once_too(
    workdir: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def train() -> None:
        with Timeline(workdir, 0) as timeline, broken(workdir, fault):
            for step in range(1, 30):
                timeline.saved(step)

    within(SECONDS, train)
    lost = fault in ("no space", "vanished")
    assert files_named(capsys.readouterr().out.splitlines(), workdir) == [TIMELINE_FILE] * lost
    if not lost:
        assert [r["step"] for r in read_timeline(workdir)] == list(range(30))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tensorboard", [False, True])
def test_what_fails_at_the_start_is_refused_by_name(
    workdir: Path, fault: str, tensorboard: bool
) -> None:
    expected = METRICS_FILE
    if fault == "no space":  # an empty file can be made there
        expected = "tensorboard"
        if not tensorboard:
            return
    with broken(workdir, fault), pytest.raises(InputError, match=rf"{expected} cannot be written"):
        within(SECONDS, lambda: MetricsWriter(workdir, tensorboard=tensorboard))


def test_a_line_is_whole_or_not_there_and_room_is_used_again(workdir: Path) -> None:
    lines: list[str] = []
    with MetricsWriter(workdir, tensorboard=False, warn=lines.append) as writer:
        writer.write({"step": 1})
        file = writer._log._file  # type: ignore[union-attr]

        class FullAfterHalf(io.RawIOBase):
            def fileno(self) -> int:
                return file.fileno()  # type: ignore[union-attr]

            def truncate(self, size: int | None = None) -> int:
                return file.truncate(size)  # type: ignore[union-attr]

            def write(self, data: Any) -> int:
                if len(data) < 10:
                    raise OSError(28, "No space left on device")
                return file.write(data[: len(data) // 2])  # type: ignore[union-attr]

        writer._log._file = FullAfterHalf()  # type: ignore[union-attr]
        writer.write({"step": 2, "text": "x" * 100})
        assert (workdir / METRICS_FILE).read_text() == '{"step": 1}\n'
        writer._log._file = file  # type: ignore[union-attr]
        writer.write({"step": 3})
    assert [record["step"] for record in read_metrics(workdir)] == [1, 3]
    assert len(lines) == 1


def test_damaged_lines_are_left_out_and_said(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = (
        b'\xff\xfe{"st', b"[1]", b'{"step": "2"}', b'{"step": true}', b'{"step": null}', b"\0" * 9,
        b"[" * 100_000, b"",
    )  # fmt: skip
    lines = b"\n".join([b'{"step": 1}', *damaged, b'{"step": 2, "loss": NaN, "x": -Infinity}', b""])
    (workdir / METRICS_FILE).write_bytes(lines)
    assert [record["step"] for record in read_metrics(workdir)] == [1, 2]
    said = f"{workdir / METRICS_FILE}: 8 damaged lines are left out, line 2 first\n"
    assert capsys.readouterr() == ("", said)
    warned: list[str] = []
    with MetricsWriter(workdir, start_step=9, tensorboard=False, warn=warned.append) as writer:
        writer.write({"step": 10, "loss": float("nan"), "deep": [{"x": float("inf")}]})
    assert [*warned, ""] == said.split("\n")
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read_metrics(workdir) == [
        {"step": 1},
        {"step": 2, "loss": None, "x": None},
        {"step": 10, "loss": None, "deep": [{"x": None}]},
    ]
    assert capsys.readouterr() == ("", "")


def test_events_go_to_a_remote_store(monkeypatch: pytest.MonkeyPatch) -> None:
    run = remote_store.install(monkeypatch)
    with MetricsWriter(run) as writer:
        writer.write({"step": 3, "loss": 2.5})
    (file,) = (run / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    assert found == [("loss", 3, 2.5)]


# ------------------------------------------------------------- why not the library's own writer


SUMMARY_WRITER = """
import tensorboardX
from tensorboardX.record_writer import register_writer_factory

class FullDisk:
    directory_check = staticmethod(lambda path: None)
    open = staticmethod(lambda path: open("/dev/full", "wb"))

register_writer_factory("full", FullDisk)
writer = tensorboardX.SummaryWriter("full:run", max_queue=2)
for step in range(1000):
    writer.add_scalar("loss", 1.0, step)
    print(step, flush=True)
"""


def test_the_summary_writer_of_tensorboardx_waits_for_ever_on_a_full_disk() -> None:
    """If this fails, its writer can replace `EventLog`."""
    command = [sys.executable, "-c", SUMMARY_WRITER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=3)
        child.kill()
        output, errors = child.communicate()
    assert len(output.splitlines()) < 100
    assert b"No space left on device" in errors
