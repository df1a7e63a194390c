"""A run's directory belongs to one start at a time.

The start that has it leaves a file that says who it is, and touches it every few seconds. Nobody
needs to clean up after a crash: on the same machine the process is seen to be gone, and from
another one the file is seen not to be touched any more; clocks are not compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import filelock
from etils import epath

from modbrick.checkpoints.workdir.directory import is_local
from modbrick.errors import InputError, reason
from modbrick.parallel.processes import is_first

LOCK = ".lock"
SILENCE = 60.0
"""Seconds without a sign of life after which a start counts as gone, seen from another machine."""
BEAT = 3.0
"""Seconds between signs of life."""


class RunLock:
    """Holds a run's directory until `release`. Of several processes the first one does.

    Where the start that had it may be gone, but this machine cannot tell, it is watched for
    `SILENCE` seconds.

    Args:
      directory: of the run; made if it does not exist.
      say: is handed a line before waiting.

    Raises:
      InputError: another start has it, or it cannot be written.
    """

    def __init__(self, directory: epath.Path, say: Callable[[str], None]):
        self._directory = directory
        self._lock: _Lock = _OfAnother()
        if not is_first():
            return
        self._lock = (_LocalLock if is_local(directory) else _RemoteLock)(directory / LOCK)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._take(say)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"{directory} cannot be written ({reason}): name another one"
            ) from error

    def _take(self, say: Callable[[str], None]) -> None:
        start, before, said = time.monotonic(), None, False
        while not self._lock.take():
            now, beat = time.monotonic(), self._lock.beat()
            if before is not None and beat not in (None, before):
                raise self._in_use()
            before = before or beat
            if now - start > 2 * BEAT and not said:
                said = True
                say(
                    f"{self._directory} was left by {self._lock.owner()}, or is in use by it: "
                    f"waiting {SILENCE:.0f} s for a sign of life"
                )
            if now - start > SILENCE + 4 * BEAT:
                raise self._in_use()
            time.sleep(BEAT / 10)

    def require(self) -> None:
        """Checks that the directory still belongs to this start.

        Raises:
          InputError: another one has taken it, since this one gave no sign of life for too long;
            or nobody can tell.
        """
        try:
            lost = self._lock.lost()
        except OSError as error:
            said = f"the lock of {self._directory} cannot be read ({reason(error)})"
            raise InputError(said) from error
        if lost:
            raise InputError(
                f"{self._directory} was taken over by {self._lock.owner()} while this process was "
                "suspended: this one ends"
            )

    def release(self) -> None:
        """Lets the next start have the directory."""
        self._lock.release()

    def _in_use(self) -> InputError:
        return InputError(
            f"{self._directory} is in use by {self._lock.owner()}: wait until that has ended, or "
            "name another directory"
        )


@contextlib.contextmanager
def held(directory: epath.Path) -> Iterator[None]:
    """Holds a directory that is changed by one process at a time, each of them for a moment.

    Waits for whoever has it, and for `SILENCE` seconds for one that may be gone.

    Args:
      directory: which is there.

    Raises:
      InputError: another process does not let go of it, or it cannot be written.
    """
    lock: _Lock = (_LocalLock if is_local(directory) else _RemoteLock)(directory / LOCK)
    end = time.monotonic() + SILENCE + 4 * BEAT
    try:
        while not lock.take():
            if time.monotonic() > end:
                raise InputError(f"{directory} is in use by {lock.owner()}: try again later")
            time.sleep(0.02 if is_local(directory) else BEAT / 10)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{directory} cannot be written ({reason})") from error
    try:
        yield
    finally:
        lock.release()


class _Lock(Protocol):
    def take(self) -> bool: ...
    def beat(self) -> Any: ...
    def owner(self) -> str: ...
    def lost(self) -> bool: ...
    def release(self) -> None: ...


class _OfAnother:
    """Stands in where another process has the lock."""

    def take(self) -> bool:
        return True

    def beat(self) -> Any:
        return None

    def owner(self) -> str:
        return "another process"

    def lost(self) -> bool:
        return False

    def release(self) -> None:
        pass


class _LocalLock:
    """Of a directory on a file system, which may be one of a network."""

    def __init__(self, path: epath.Path):
        self._path, self._lost = path, False
        self._lease = filelock.SoftFileLease(
            os.fspath(path),
            lease_duration=SILENCE,
            heartbeat_interval=BEAT,
            on_compromise=self._compromised,
            thread_local=False,
        )

    def _compromised(self, compromise: filelock.LeaseCompromise) -> None:
        self._lost = compromise.reason == "owner-changed"

    def take(self) -> bool:
        try:
            self._lease.acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    def beat(self) -> Any:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def owner(self) -> str:
        owner = self._lease.owner
        return _named(owner.pid, owner.hostname.partition("?")[0]) if owner else "another process"

    def lost(self) -> bool:
        return self._lost

    def release(self) -> None:
        self._lease.release()


class _RemoteLock:
    """Of a directory on a remote store, which has whole objects only."""

    def __init__(self, path: epath.Path):
        self._path, self._token = path, secrets.token_hex(8)
        self._beats = 0
        self._seen: tuple[Any, float] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lock", daemon=True)

    def take(self) -> bool:
        if (found := self.beat()) is not None:
            if self._seen is None or self._seen[0] != found:
                self._seen = (found, time.monotonic())
            if time.monotonic() - self._seen[1] < SILENCE:
                return False
        self._write()
        time.sleep(BEAT / 3)  # of two that come at once, the one that wrote last has it
        if self.lost():
            return False
        self._thread.start()
        return True

    def beat(self) -> Any:
        found = self._read()
        return (found["token"], found["beats"]) if found else None

    def owner(self) -> str:
        found = self._read()
        return _named(found["pid"], found["host"]) if found else "another process"

    def lost(self) -> bool:
        found = self._read()
        return found is not None and found["token"] != self._token

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        if not self.lost():
            self._path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            try:
                if self.lost():
                    return
                self._write()
            except OSError:
                continue  # the store may be there again at the next beat

    def _write(self) -> None:
        self._beats += 1
        record = {
            "token": self._token,
            "beats": self._beats,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._path.write_text(json.dumps(record))

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._path.read_text())
            return record if {"token", "beats", "pid", "host"} <= set(record) else None
        except (FileNotFoundError, ValueError, TypeError):
            return None


def _named(pid: int, host: str) -> str:
    return f"process {pid} on {host}"
