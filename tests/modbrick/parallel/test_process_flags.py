"""Flags of processes become their config."""

from __future__ import annotations

from absl.testing import flagsaver

from modbrick.parallel import process_flags
from modbrick.parallel.processes import ProcessConfig


def test_flags_say_which_process_this_is() -> None:
    with flagsaver.as_parsed(
        coordinator="host:1234",
        processes="3",
        process="2",
        start_timeout="9",
        silence_timeout="7",
    ):
        found = process_flags.process_config()
    assert found == ProcessConfig("host:1234", 3, 2, start_timeout=9, silence_timeout=7)
