"""Processor time of the suite by area, and the bounds that leave room for what is still to come.

Counted are user and system seconds of a test with its fixtures: of all its threads, and of the
processes that it started and waited for. Unlike the time by the clock, they hardly depend on what
else the machine does. Each run prints them; `--hold-bounds` fails a run that exceeds a bound.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

from tests import programs

# Processor minutes in `make test`, room for the wing of bricks included; a file belongs to the
# longest path. Two cores share them: together under 40.
AREAS = {
    "tests": 0.4,
    "tests/docs": 1.6,
    "tests/examples": 0.5,
    "tests/modbrick": 1.3,
    "tests/modbrick/analysis": 0.3,
    "tests/modbrick/bricks": 5.4,
    "tests/modbrick/checkpoints": 1.8,
    "tests/modbrick/convert": 3.7,
    "tests/modbrick/data": 0.5,
    "tests/modbrick/decoder": 1.3,
    "tests/modbrick/inference": 1.0,
    "tests/modbrick/layers": 1.2,
    "tests/modbrick/library": 0.4,
    "tests/modbrick/models": 1.2,
    "tests/modbrick/operations": 2.0,
    "tests/modbrick/parallel": 2.4,
    "tests/modbrick/planning": 0.4,
    "tests/modbrick/training": 4.2,
    "tests/pallas_kernels": 5.4,
    "tests/scripts": 3.6,
    "tests/tools": 0.2,
}
# Processor minutes of a test file.
FILE_MINUTES = 2.5

# What the workers take until their first test.
STARTING = "starting, and importing the tests"


def processor_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    return sum(os.times()[:4]) + programs.processor_seconds()


def by_area(files: Counter[str]) -> Counter[str]:
    """Processor seconds by area."""
    areas: Counter[str] = Counter()
    for path, seconds in files.items():
        areas[area(path)] += seconds
    return areas


def exceeded(files: Counter[str], tolerance: float) -> list[str]:
    """The bounds that are exceeded more than `tolerance` times, each in one line."""
    bounds = [(name, taken, AREAS.get(name)) for name, taken in by_area(files).items()]
    bounds += [(name, taken, FILE_MINUTES) for name, taken in files.items()]
    return [
        f"{name} took {taken / 60:.2f} minutes of processor time, its bound is {bound:g}"
        for name, taken, bound in bounds
        if name != STARTING and bound is not None and taken > tolerance * 60 * bound
    ]


def area(path: str) -> str:
    """The area that a test file belongs to; a file outside of all is an area of its own."""
    inside = [prefix for prefix in AREAS if path == prefix or path.startswith(f"{prefix}/")]
    return max(inside, key=len, default=path)


class ProcessorTime:
    """Measures in each worker, adds up and prints in the process that the user started."""

    def __init__(self, record: Path | None) -> None:
        self.record = record
        self.tests: Counter[str] = Counter()  # seconds by node id, and those of starting
        self.before = 0.0
        self.starting: float | None = None

    def pytest_collection_finish(self) -> None:
        self.before = self.starting = processor_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = processor_seconds()
        # Attributes of a report travel from the workers.
        vars(report).update(processor_seconds=now - self.before, starting_seconds=self.starting)
        self.starting = None
        self.before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # The report of a worker that crashed has neither.
        phases = ((report.nodeid, "processor_seconds"), (STARTING, "starting_seconds"))
        for name, seconds in ((name, vars(report).get(attribute)) for name, attribute in phases):
            if seconds:
                self.tests[name] += seconds
                if self.record is not None:
                    with self.record.open("a") as file:
                        print(json.dumps([name, seconds]), file=file)

    def files(self) -> Counter[str]:
        """Processor seconds by test file."""
        files: Counter[str] = Counter()
        for test, seconds in self.tests.items():
            files[test.partition("::")[0]] += seconds
        return files

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        tolerance = session.config.getoption("hold_bounds")
        if tolerance is not None and exceeded(self.files(), tolerance):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        files = self.files()
        write = terminalreporter.write_line
        terminalreporter.section("processor time")
        for name, seconds in by_area(files).most_common():
            bound = f" of {AREAS[name]:g}" if name in AREAS else ""
            write(f"{seconds / 60:6.2f}{bound} min  {name}")
        write(f"{files.total() / 60:6.2f} min  all")
        for line in exceeded(files, config.getoption("hold_bounds") or 1.0):
            write(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("processor time")
    group.addoption(
        "--hold-bounds",
        type=float,
        metavar="FACTOR",
        help="fail where an area or a file takes more than FACTOR times its processor time",
    )
    group.addoption(
        "--record-processor-time",
        type=Path,
        metavar="FILE",
        help="add to a file, as each phase of a test ends, a line of JSON: [test, seconds]",
    )


def pytest_configure(config: pytest.Config) -> None:
    record = None if hasattr(config, "workerinput") else config.getoption("record_processor_time")
    config.pluginmanager.register(ProcessorTime(record), "processor_time")
