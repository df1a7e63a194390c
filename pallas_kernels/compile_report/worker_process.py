"""Runs a worker in a process of its own and follows it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pallas_kernels.compile_report.compilation import LIBTPU_ENVIRONMENT, CompilerUnavailableError
from pallas_kernels.compile_report.program import ProgramReference


class CompileError(RuntimeError):
    """The compiler refused a program; the message is the compiler's."""


def run_worker(
    module: str,
    folder: Path,
    programs: Sequence[ProgramReference],
    *,
    request: Mapping[str, Any],
    environment: Mapping[str, str],
    on_done: Callable[[], None] | None,
    timeout: float,
) -> None:
    """Runs `module` on FOLDER/request.json until it has done all programs.

    Args:
        module: runs as `python -m module FOLDER`, and prints "done" after each program.
        folder: where it finds the request and leaves its results.
        programs: part of the request.
        request: the rest of it.
        environment: variables beside those of this process.
        on_done: called after each program.
        timeout: seconds in all.

    Raises:
        CompilerUnavailableError: the compiler is not installed.
        RuntimeError: the process died, or took too long.
    """
    content = {**request, "programs": [dataclasses.asdict(program) for program in programs]}
    (folder / "request.json").write_text(json.dumps(content))
    variables = {
        **os.environ,
        **LIBTPU_ENVIRONMENT,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        # A program from a cache leaves nothing to read.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        **environment,
    }
    command = [sys.executable, "-m", module, str(folder)]
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if line.startswith("done") and on_done is not None:
                    on_done()
            status = process.wait()
        finally:
            expired = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.wait()
    if status:
        last = (log.read_text().strip().splitlines() or ["no message"])[-1]
        if "CompilerUnavailableError" in last:
            raise CompilerUnavailableError(last.split(": ", 1)[-1])
        reason = f"took more than {timeout:.0f} s" if expired else f"died ({status}): {last}"
        raise RuntimeError(f"the compiling process {reason}")
