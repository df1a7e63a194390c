"""TensorBoard events of a run, written by tensorboardX without its thread.

Its `SummaryWriter` hands events to a thread through a bounded queue. On a full disk the thread ends
by an error, and the next `add_scalar` waits for it for ever.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from modbrick.checkpoints.workdir.directory import is_local
from modbrick.errors import InputError
from modbrick.parallel.processes import say
from modbrick.training.observe.outage import Outage

DIRECTORY = "tensorboard"
FLUSH_EVERY = 10.0
"""Seconds after which events are on disk, at most, once the next ones are written."""


class EventLog:
    """Appends scalars to a file of TensorBoard events in `WORKDIR/tensorboard`.

    If it cannot be written, that is said once, and there are no further events of this start.

    Args:
      directory: of the run.
      start_step: that the run continues from: events of later steps, of starts before, are hidden.
      warn: is handed the line about events that are lost.

    Raises:
      InputError: the file cannot be made.
    """

    def __init__(
        self, directory: epath.Path, *, start_step: int, warn: Callable[[str], None] = say
    ):
        from tensorboardX.proto import event_pb2  # takes a second to import
        from tensorboardX.record_writer import RecordWriter, register_writer_factory

        self._event = event_pb2.Event
        folder = directory / DIRECTORY
        self._outage = Outage(folder, "without further events", warn)
        self._flushed = time.monotonic()
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        if not is_local(folder):
            register_writer_factory(str(folder).partition("://")[0], _RemoteFiles)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(os.fspath(folder / name))
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"{folder} cannot be written ({reason})") from error
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        begin = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.Value("START"))
        self._write(self._event(wall_time=time.time(), step=start_step + 1, session_log=begin))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers by name."""
        from tensorboardX.summary import scalar

        event = self._event(wall_time=time.time(), step=step)
        for name, value in scalars.items():
            event.summary.value.extend(scalar(name, value).value)
        self._write(event)
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            self._flush()

    def _write(self, event: Any) -> None:
        if not self._outage.began:
            with self._outage.survived():
                self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if not self._outage.began:
            with self._outage.survived():
                self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._flush()
        with contextlib.suppress(OSError):  # what it could not flush was said
            self._writer.close()


class _RemoteFiles:
    """Makes files of tensorboardX on a remote store, through etils."""

    @staticmethod
    def directory_check(path: str) -> None:
        """Does nothing: there are no empty directories."""

    @staticmethod
    def open(path: str) -> _RemoteFile:
        """Returns a file to write."""
        return _RemoteFile(epath.Path(path))


class _RemoteFile:
    """Writes all of an object anew whenever it is flushed."""

    def __init__(self, path: epath.Path):
        self._path, self._buffer = path, io.BytesIO()

    def write(self, data: bytes) -> None:
        self._buffer.write(data)

    def flush(self) -> None:
        self._path.write_bytes(self._buffer.getvalue())

    def close(self) -> None:
        self.flush()
