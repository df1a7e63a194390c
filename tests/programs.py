"""Python programs in processes of their own that have jax and the library imported when they start.

Starting `python scripts/train.py` takes 3 s of processor time before the script does anything; a
fork of a process that has imported all of it takes 0.1 s. Nothing else differs: arguments,
environment, streams, exit status and number of devices are those asked for, and nothing that one
program does is seen by the next. Use `subprocess` where the start itself is what a test is about.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Of a program that runs once or twice on little data: what `tests.compilation.QUICK` is to jax.jit.
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


class Program:
    """A running program, with the methods of `subprocess.Popen`."""

    def __init__(
        self,
        line: Sequence[object],
        *,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        errors: Path | None = None,
    ) -> None:
        """Starts a script with arguments, as `subprocess.Popen([python, *line])` does.

        Args:
            line: the path of the script, or "-c" and a program, and its arguments.
            cwd: where it runs.
            environment: variables beside, or in place of, those of this process.
            errors: a file for what it writes to standard error, to be read while it runs.
        """
        self.args = list(map(str, line))
        self.returncode: int | None = None
        self._streams = tempfile.TemporaryDirectory()
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self._out = Path(self._streams.name) / "stdout"
        self._errors = errors or Path(self._streams.name) / "stderr"
        request = {
            "line": self.args,
            "cwd": str(cwd),
            "environment": variables,
            "streams": [str(self._out), str(self._errors)],
        }
        self.pid: int = _ask({"start": request})

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        if self.returncode is None:
            self.returncode, seconds = _ask({"poll": self.pid})
            if self.returncode is not None:
                _seconds.append(seconds)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Waits for its end; raises `subprocess.TimeoutExpired` after so many seconds."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return status

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Waits for its end and returns what it wrote to standard output and standard error."""
        self.wait(timeout)
        return self._out.read_text("utf-8"), self._errors.read_text("utf-8")

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


def run(
    line: Sequence[object],
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, as `subprocess.run([python, *line])` does; see `Program`."""
    program = Program(line, cwd=cwd, environment=environment)
    try:
        out, errors = program.communicate(timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
    assert program.returncode is not None
    return subprocess.CompletedProcess(program.args, program.returncode, out, errors)


def processor_seconds() -> float:
    """Seconds of processor time that ended programs have taken."""
    return sum(_seconds)


_seconds: list[float] = []


def _ask(question: dict[str, Any]) -> Any:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps(question), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that programs are forked from; it ends with this one, whose pipe then closes."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    _seconds.append(json.loads(server.stdout.readline()))
    return server


# ------------------------------------------------------------------------------------ the server


def _import_all() -> None:
    """Imports what programs import. No module starts jax's devices; a fork could not use them."""
    for name in ("modbrick", "pallas_kernels"):
        package = importlib.import_module(name)
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)


def _serve() -> dict[str, Any]:
    """Answers questions, one a line; returns in each program that it forks, what that shall be."""
    for text in sys.stdin:
        match json.loads(text):
            case {"start": request}:
                answer: Any = os.fork()
                if answer == 0:
                    return request
            case {"poll": pid}:
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if ended else None
                answer = [code, usage.ru_utime + usage.ru_stime]
        print(json.dumps(answer), flush=True)
    sys.exit()


def _become(request: dict[str, Any]) -> None:
    """Gives this process the streams, directory, variables and arguments of a program."""
    for number, path in enumerate([os.devnull, *request["streams"]]):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    import jax

    for name, value in request["environment"].items():
        # jax has read its variables already.
        if name.startswith("JAX_") and os.environ.get(name) != value:
            before = getattr(jax.config, name.lower())
            numeric = isinstance(before, int)  # or bool
            jax.config.update(name.lower(), type(before)(int(value)) if numeric else value)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["line"]
    sys.path[0] = "" if sys.argv[0] == "-c" else str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    gc.freeze()  # what a program collects at its end is its own
    print(time.process_time(), flush=True)
    # Threads of numpy and Arrow idle until they are used; both know of forks.
    warnings.filterwarnings("ignore", message=".*fork")
    _become(_serve())
    if sys.argv[0] == "-c":
        exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
