"""Compiling a run's real step for devices that are not there, in a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from modbrick.errors import InputError
from modbrick.planning.compiled.worker import PROGRAM, REQUEST, RESULT, SCHEDULES
from modbrick.planning.topology import Topology
from modbrick.schema import to_mapping
from modbrick.training.run_config import RunConfig
from pallas_kernels.compile_report.chips import find_chip
from pallas_kernels.compile_report.compilation import LIBTPU_ENVIRONMENT
from pallas_kernels.compile_report.tpu.schedule import DUMP_FLAGS, Schedule, read_schedules

_WORKER = "modbrick.planning.compiled.worker"

Progress = Callable[[str, float], None]
"""Told what is being done, and for how many seconds already."""


@dataclasses.dataclass(frozen=True)
class CompiledMemory:
    """Bytes on one device, as the compiler planned them (`compiled.memory_analysis()`).

    Attributes:
      arguments: state and batch.
      outputs: the new state and the report.
      aliased: of the outputs, those written over arguments.
      temporaries: everything in between, at its worst moment.
      code: of the program.
      host_temporaries: in the host's memory.
      peak: of everything at its worst moment, where the compiler says so.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    host_temporaries: int
    peak: int

    @property
    def total(self) -> int:
        """Bytes that the program needs on the device."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step.

    Attributes:
      memory: what it needs on each device.
      text: of the optimised program.
      schedules: of its operations, by name of the instruction; none for a CPU.
      coordinates: slice and place in the torus of each device, in the order of the mesh.
      lowering_seconds, compile_seconds: what it took by the clock.
      processor_seconds: what both took on the processors.
    """

    memory: CompiledMemory
    text: str
    schedules: dict[str, Schedule]
    coordinates: tuple[tuple[int, ...], ...]
    lowering_seconds: float
    compile_seconds: float
    processor_seconds: float


class DoesNotFitError(Exception):
    """The step needs more memory than a device has; the message is the compiler's.

    Attributes:
      seconds, processor_seconds: what finding out took.
    """

    def __init__(self, message: str, seconds: float, processor_seconds: float):
        super().__init__(message)
        self.seconds, self.processor_seconds = seconds, processor_seconds


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def required_bytes(error: DoesNotFitError) -> int | None:
    """Returns what the program would need, if the compiler says so."""
    text = str(error)
    for pattern in (r"Used ([\d.]+)([KMGT]?) of", r"\(([\d.]+)([KMGT]?)\) exceeds"):
        if match := re.search(pattern, text):
            return int(float(match[1]) * _UNITS[match[2]])
    return None


def compile_step(
    config: RunConfig,
    topology: Topology | None,
    *,
    progress: Progress | None = None,
    timeout: float = 3600.0,
) -> CompiledStep:
    """Compiles the step that `scripts/train.py` would run.

    Args:
      config: of the run. For a TPU `execution.attention` and `execution.dispatch` have to be named:
        a choice left open looks at the machine at hand.
      topology: of the devices; None: the devices of this machine.
      progress: called about once a second.
      timeout: seconds.

    Raises:
      InputError: libtpu is missing, choices are left open, or the mesh does not fit.
      DoesNotFitError: the step needs more memory than there is.
      RuntimeError: the compiler fails otherwise, or takes too long.
    """
    if topology is not None:
        _check_named(config)
        if importlib.util.find_spec("libtpu") is None:
            raise InputError("compiling for TPUs needs libtpu: pip install 'modbrick[plan]'")
    request = {
        "config": to_mapping(config),
        "topology": None if topology is None else topology.name,
    }
    with tempfile.TemporaryDirectory(prefix="plan_") as name:
        folder = Path(name)
        (folder / REQUEST).write_text(json.dumps(request))
        (folder / SCHEDULES).mkdir()
        _run_worker(folder, progress, timeout)
        result = json.loads((folder / RESULT).read_text())
        if "input_error" in result:
            raise InputError(result["input_error"])
        if "compiler_error" in result:
            message = result["compiler_error"]
            if "RESOURCE_EXHAUSTED" in message:
                seconds = result["compile_seconds"]
                raise DoesNotFitError(message, seconds, result["processor_seconds"])
            raise RuntimeError(f"the compiler fails on this step: {message}")
        return CompiledStep(
            memory=CompiledMemory(**result["memory"]),
            text=(folder / PROGRAM).read_text(),
            schedules={} if topology is None else _schedules(folder / SCHEDULES, topology),
            coordinates=tuple(map(tuple, result["coordinates"])),
            lowering_seconds=result["lowering_seconds"],
            compile_seconds=result["compile_seconds"],
            processor_seconds=result["processor_seconds"],
        )


def _schedules(folder: Path, topology: Topology) -> dict[str, Schedule]:
    return read_schedules(folder, find_chip(topology.generation.name).branch_delay)


def _check_named(config: RunConfig) -> None:
    for field in ("attention", "dispatch"):
        if getattr(config.execution, field) is None:
            raise InputError(
                f"execution.{field} is open, and would be chosen by the machine that compiles: "
                "name it (tpu or xla)"
            )


def worker_environment(schedules: Path) -> dict[str, str]:
    """Returns the variables of a process that compiles for TPUs on a machine without one.

    Args:
      schedules: folder in which the compiler leaves what it made of each operation.
    """
    flags = [os.environ.get("LIBTPU_INIT_ARGS", "")]
    flags += [flag.format(folder=schedules) for flag in DUMP_FLAGS]
    return {
        **os.environ,
        **LIBTPU_ENVIRONMENT,
        "LIBTPU_INIT_ARGS": " ".join(flags).strip(),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _run_worker(folder: Path, progress: Progress | None, timeout: float) -> None:
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, str(folder)],
            env=worker_environment(folder / SCHEDULES),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with _ended(process):
            expired = _follow(process, progress, timeout)
    if process.returncode:
        if expired:
            raise RuntimeError(f"compiling took more than {timeout:.0f} s")
        lines = [line for line in (folder / "log").read_text().splitlines() if line.strip()]
        raise RuntimeError(
            f"the compiling process died ({process.returncode}): "
            + (lines[-1] if lines else "it left no message")
        )


def _follow(process: subprocess.Popen[str], progress: Progress | None, timeout: float) -> bool:
    """Waits for the process and reports what it does; returns whether it ran out of time."""
    stage = ["lowering"]

    def listen(output: IO[str]) -> None:
        for line in output:
            if line.startswith("lowered"):
                stage[0] = "compiling"

    assert process.stdout is not None
    listener = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
    listener.start()
    start = time.monotonic()
    expired = False
    while process.poll() is None:
        seconds = time.monotonic() - start
        if progress is not None:
            progress(stage[0], seconds)
        if seconds > timeout:
            expired = True
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
    listener.join()
    return expired


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leaves no process behind, whatever happens."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
