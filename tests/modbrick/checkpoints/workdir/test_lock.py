"""Two starts on one directory: the second is refused by name, or follows one that is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import pytest
from etils import epath

from modbrick.checkpoints import CheckpointStore, Metadata
from modbrick.checkpoints.workdir import lock
from modbrick.checkpoints.workdir.lock import RunLock
from modbrick.errors import InputError
from tests import remote_store

HOLDER = """
import socket, sys, time
from etils import epath
from modbrick.checkpoints.workdir import lock
directory, silence, beat, host = sys.argv[1:]
lock.SILENCE, lock.BEAT = float(silence), float(beat)
if host:
    socket.gethostname = lambda: host
held = lock.RunLock(epath.Path(directory), print)
print("held", flush=True)
sys.stdin.read()
held.require()
held.release()
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    monkeypatch.setattr(lock, "BEAT", 0.2)


@contextmanager
def holder(
    directory: Path, host: str = "", silence: str = "2.0"
) -> Iterator[subprocess.Popen[str]]:
    """Another start that has the directory."""
    command = [sys.executable, "-c", HOLDER, str(directory), silence, "0.2", host]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_the_second_is_refused_by_name(tmp_path: Path) -> None:
    with holder(tmp_path) as child:
        message = rf"in use by process {child.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=message):
            CheckpointStore(tmp_path)
        assert child.communicate("")[1] == "", "it goes on and ends undisturbed"
    assert os.listdir(tmp_path) == []
    with CheckpointStore(tmp_path):
        pass


def test_one_that_runs_on_another_machine_is_seen_to_live(tmp_path: Path) -> None:
    message = r"in use by process \d+ on elsewhere"
    with holder(tmp_path, "elsewhere"), pytest.raises(InputError, match=message):
        RunLock(epath.Path(tmp_path), print)


def test_after_a_crash_on_this_machine_the_next_starts_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as child:
        child.kill()
        child.wait()
    lines: list[str] = []
    start = time.monotonic()
    RunLock(epath.Path(tmp_path), lines.append).release()
    assert time.monotonic() - start < 1.0
    assert not lines


def test_after_a_crash_on_another_machine_the_next_waits_for_a_sign_of_life(tmp_path: Path) -> None:
    with holder(tmp_path, "elsewhere") as child:
        child.kill()
        child.wait()
    lines: list[str] = []
    RunLock(epath.Path(tmp_path), lines.append).release()
    (line,) = lines
    assert f"process {child.pid} on elsewhere" in line


def test_one_that_was_suspended_and_replaced_saves_nothing_more(
    tmp_path: Path, metadata: Metadata
) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"w": jnp.ones(3)}, None, metadata)
        store.wait()
        marker = tmp_path / ".lock"
        # What a start on another machine does after it has seen no sign of life for so long.
        fresh = tmp_path / "fresh"
        fresh.write_text(marker.read_text())
        fresh.replace(marker)
        time.sleep(1.0)
        with pytest.raises(InputError, match="taken over"):
            store.save(2, {"w": jnp.ones(3)}, None, metadata)
        assert store.steps() == [1]


def test_on_a_remote_store(monkeypatch: pytest.MonkeyPatch) -> None:
    run = remote_store.install(monkeypatch)
    held = RunLock(run, print)
    with pytest.raises(InputError, match=f"in use by process {os.getpid()} on"):
        RunLock(run, print)
    held.require()
    held.release()
    assert not (run / ".lock").exists()
    crashed = RunLock(run, print)
    crashed._lock._end.set()  # type: ignore[attr-defined]
    lines: list[str] = []
    successor = RunLock(run, lines.append)
    assert len(lines) == 1
    with pytest.raises(InputError, match="taken over"):
        crashed.require()
    successor.release()
    assert not any(thread.name == "lock" for thread in threading.enumerate())


def test_a_signal_ends_a_run_that_waits(tmp_path: Path) -> None:
    with holder(tmp_path, "elsewhere", "60") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "60", "0.2", ""]
    waiting = subprocess.Popen(command, stdin=subprocess.PIPE)
    time.sleep(2)
    waiting.terminate()
    assert waiting.wait(timeout=5) == -signal.SIGTERM
