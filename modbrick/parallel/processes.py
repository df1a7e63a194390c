"""Many processes: how they find each other, what they must agree on, and how they exchange it.

Every process runs the same script on its own devices. On TPU pods, under Slurm and wherever else
jax recognises the cluster they find each other by themselves; elsewhere by the address of the first
process, the coordinator. What follows is one program on all devices: every process makes the same
calls in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # has the address that a cluster gave
from jax.experimental import multihost_utils

from modbrick.command_line import BAD_INPUT
from modbrick.errors import InputError, listed
from modbrick.schema import differences

ALONE = "none"
# How jax says that no address was given and none could be found out.
_NO_CLUSTER = "coordinator_address should be defined"
# jax's own time limits end the process with a stack trace: ours come first.
_LATER = 60
# Seconds in which processes that end together take leave of each other.
_LEAVE = 5


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Config of how this process finds the others.

    Attributes:
      coordinator: HOST:PORT at which the first process listens; `none`: this process is alone,
        whatever cluster it runs on; None: as the cluster says, alone without one.
      processes: how many there are; None: as the cluster says.
      process: number of this one, from 0; None: as the cluster says.
      start_timeout: seconds to wait until all processes are there.
      silence_timeout: seconds without a sign of life after which a process counts as dead, and all
        end.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    start_timeout: int = 300
    silence_timeout: int = 100

    def __post_init__(self) -> None:
        numbers = (self.processes, self.process)
        if self.coordinator in (None, ALONE) and numbers != (None, None):
            raise InputError(
                "--processes and --process go with the address of the first process: "
                "--coordinator=HOST:PORT"
            )
        if self.coordinator not in (None, ALONE):
            if not re.fullmatch(r".+:\d{1,5}", str(self.coordinator)):
                raise InputError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
            if (self.processes is None) != (self.process is None):
                raise InputError("--processes and --process go together")
        if self.processes is not None and self.process is not None:
            if self.processes < 1:
                raise InputError(f"--processes must be at least 1, got {self.processes}")
            if not 0 <= self.process < self.processes:
                raise InputError(
                    f"--process must be from 0 to --processes - 1 ({self.processes - 1}), got "
                    f"{self.process}"
                )
        for name in ("start_timeout", "silence_timeout"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")


def start_processes(config: ProcessConfig) -> None:
    """Waits until all processes are there; from then on `jax.devices()` are those of all of them.

    Comes before anything that asks jax for devices.

    Raises:
      InputError: no coordinator within the time, or no cluster where flags name only a part.
    """
    if config.coordinator == ALONE:
        return
    # Its handler would take SIGTERM from the one that knows Ctrl-C too, see `PreemptionGuard`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    problems: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                config.coordinator,
                config.processes,
                config.process,
                initialization_timeout=config.start_timeout + _LATER,
                heartbeat_timeout_seconds=config.silence_timeout,
                shutdown_timeout_seconds=config.silence_timeout,
            )
        except (ValueError, RuntimeError, OSError) as error:
            problems.append(error)

    # While it waits, jax listens to no time limit but its own.
    waiting = threading.Thread(target=connect, name="processes", daemon=True)
    waiting.start()
    waiting.join(config.start_timeout)
    if waiting.is_alive():
        # The thread is inside of jax, which at exit would add pages about it to this line.
        atexit.register(_leave)
        raise InputError(_nobody_there(config))
    if problems:
        if config.coordinator is None and _NO_CLUSTER in str(problems[0]):
            return
        raise InputError(
            f"the processes of this cluster cannot be joined ({problems[0]}): name them with "
            "--coordinator=HOST:PORT --processes=N --process=I, or --coordinator=none"
        ) from problems[0]


@contextlib.contextmanager
def ending_by_itself() -> Iterator[None]:
    """Lets an `InputError` of this process alone end it with its line and exit status.

    At exit jax waits for the other processes, which know nothing of it, and then aborts.
    """
    try:
        yield
    except InputError:
        if jax.distributed.is_initialized():
            leaving = threading.Thread(target=jax.distributed.shutdown, name="leave", daemon=True)
            leaving.start()
            atexit.register(_leave_with, leaving)
        raise


def is_first() -> bool:
    """Returns whether this is the process that writes and talks for all of them."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(text, flush=True)


def gather(value: Any) -> list[Any]:
    """Returns what each process hands over, JSON-able data, in the order of the processes.

    Every process makes this call.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: data.size] = data
    texts = multihost_utils.process_allgather(padded)
    return [
        json.loads(bytes(text[:size]).decode()) for text, size in zip(texts, sizes, strict=True)
    ]


def everywhere[T](make: Callable[[], T], error: type[Exception] = InputError) -> T:
    """Returns what `make` returns; if it raises `error` in any process, all raise it.

    Every process makes this call; without it, one process would end and the others wait for it.

    Args:
      make: what to do.
      error: what to raise together; takes a message.

    Raises:
      error: says of which process it is, unless all say the same.
    """
    problem: Exception | None = None
    try:
        made = make()
    except error as raised:
        problem = raised
    problems = gather(None if problem is None else str(problem))
    if problem is not None and all(text == problems[0] for text in problems):
        raise problem
    failed = [f"process {index}: {text}" for index, text in enumerate(problems) if text is not None]
    if failed:
        raise error("; ".join(failed)) from problem
    return made


def check_agreement(what: Mapping[str, Any]) -> None:
    """Compares what all processes must have in common with what they have.

    Args:
      what: JSON-able data by name.

    Raises:
      InputError: in every process alike; names each key that differs, where, and the values.
    """
    first, *others = gather(dict(what))
    lines = [
        f"process {index}: {line}"
        for index, other in enumerate(others, start=1)
        for line in differences(first, other)
    ]
    if lines:
        raise InputError(
            f"the processes were not started alike (process 0 -> another): {listed(lines, '; ')}"
        )


def _leave_with(leaving: threading.Thread) -> None:
    leaving.join(_LEAVE)
    _leave()


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(BAD_INPUT)


def _nobody_there(config: ProcessConfig) -> str:
    """Says who is missing after the time was over."""
    address = str(config.coordinator or global_state.coordinator_address)
    host, _, port = address.rpartition(":")
    time = f"within {config.start_timeout} s (--start_timeout)"
    if config.process != 0:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            return (
                f"the coordinator at {address} cannot be reached {time}: is process 0 running, is "
                f"that its address? ({error})"
            )
    return (
        f"not all of the {config.processes or ''} processes came to the coordinator at {address} "
        f"{time}: start each one with its own --process"
    )
