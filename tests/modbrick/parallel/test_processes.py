"""Processes that find each other, agree, and exchange reports; two of them over loopback."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import jax
import pytest

from modbrick.errors import InputError
from modbrick.parallel.processes import (
    ProcessConfig,
    check_agreement,
    everywhere,
    gather,
    start_processes,
)
from tests import programs
from tests.programs import Program

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    """Reports of each of two processes with four devices; see `in_processes.py`."""
    script = Path(__file__).with_name("in_processes.py")
    address = f"127.0.0.1:{free_port()}"
    started = [
        Program([script, address, 2, index], environment={"JAX_NUM_CPU_DEVICES": "4"})
        for index in range(2)
    ]
    try:
        ended = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
    assert ["said once" in out for out, _ in ended] == [True, False]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_all_devices_are_everyones(reports: list[dict[str, Any]]) -> None:
    assert [report["devices"] for report in reports] == [8, 8]
    assert [report["first"] for report in reports] == [True, False]


def test_what_is_gathered_comes_in_the_order_of_the_processes(
    reports: list[dict[str, Any]],
) -> None:
    expected = [{"process": 0, "text": "é"}, {"process": 1, "text": "éé"}]
    assert [report["gathered"] for report in reports] == [expected, expected]


def test_what_differs_is_named_alike_in_every_process(reports: list[dict[str, Any]]) -> None:
    lines = {report["agreement"] for report in reports}
    assert len(lines) == 1
    assert "process 1: b.c[1]: 0 -> 1" in lines.pop()
    assert [report["alike"] for report in reports] == [None, None]


def test_an_error_of_one_process_is_raised_in_all(reports: list[dict[str, Any]]) -> None:
    assert [report["everywhere"] for report in reports] == ["process 1: lost"] * 2
    assert [report["all alike"] for report in reports] == ["lost"] * 2
    assert [report["damaged"] for report in reports] == ["process 0: bad"] * 2
    assert [report["made"] for report in reports] == [0, 1]


LONE = """
import sys, time
from modbrick import command_line
from modbrick.errors import InputError
from modbrick.parallel.processes import ProcessConfig, ending_by_itself, start_processes

address, index = sys.argv[1], int(sys.argv.pop())

def main(argv):
    start_processes(ProcessConfig(address, 2, index))
    with ending_by_itself():
        if index:
            raise InputError("a word to this one")
        time.sleep(100)

command_line.run(main, positional="ADDRESS")
"""


def test_an_error_of_one_process_alone_ends_it_as_any_other() -> None:
    line = ["-c", LONE, f"127.0.0.1:{free_port()}"]
    first = Program([*line, 0])
    try:
        lone = programs.run([*line, 1], timeout=100)
    finally:
        first.kill()
        first.wait()
    assert lone.stderr == "error: a word to this one\n"
    assert lone.returncode == 2


def test_a_vote_of_one_process_is_known_to_all_one_call_later(
    reports: list[dict[str, Any]],
) -> None:
    assert [report["votes"] for report in reports] == [[0, 0, 0, 15, 0]] * 2


def test_each_process_holds_the_rows_of_its_devices(reports: list[dict[str, Any]]) -> None:
    halves, whole = (list(range(8)), list(range(8, 16))), list(range(16))
    for name, share in {
        "data": halves,
        "fsdp x tensor": halves,
        "data x sequence": halves,
        "sequence": (whole, whole),
        "expert x sequence": halves,
        "tensor": (whole, whole),
    }.items():
        rows = [report["meshes"][name]["rows"] for report in reports]
        if share == halves:
            assert sorted(rows) == sorted(share), name
        else:
            assert rows == list(share), name


def test_batches_lie_where_they_belong_and_losses_count_once(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        for name, found in report["meshes"].items():
            assert found["right"], name
            assert found["error"] <= 1e-12, name


def test_a_process_alone_agrees_with_itself() -> None:
    assert gather({"a": 1}) == [{"a": 1}]
    assert everywhere(lambda: 5) == 5
    with pytest.raises(InputError, match=r"^as it is$"):
        everywhere(lambda: refuse("as it is"))
    check_agreement({"a": 1})
    start_processes(ProcessConfig(coordinator="none"))
    assert jax.process_count() == 1
    assert not jax.distributed.is_initialized()


def refuse(text: str) -> None:
    raise InputError(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 2}, "--coordinator=HOST:PORT"),
        ({"coordinator": "none", "process": 0}, "--coordinator=HOST:PORT"),
        ({"coordinator": "host"}, "HOST:PORT, got 'host'"),
        ({"coordinator": "host:x"}, "HOST:PORT, got 'host:x'"),
        ({"coordinator": "h:1", "processes": 2}, "go together"),
        ({"coordinator": "h:1", "processes": 0, "process": 0}, "at least 1, got 0"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, "from 0 to --processes - 1"),
        ({"start_timeout": 0}, "--start_timeout must be at least 1, got 0"),
        ({"silence_timeout": -1}, "--silence_timeout must be at least 1, got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ProcessConfig(**arguments)
