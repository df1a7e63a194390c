"""Flags by which the processes of a run find each other; `adopt_module_key_flags` lists them."""

from __future__ import annotations

from absl import flags

from modbrick.parallel.processes import ProcessConfig

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, or none. Default: as the cluster says."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Number of this one from 0, with --coordinator.")
START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 300, "Seconds to wait until all processes are there."
)
SILENCE_TIMEOUT = flags.DEFINE_integer(
    "silence_timeout", 100, "Seconds without a sign of life after which a process counts as dead."
)


def process_config() -> ProcessConfig:
    """Returns what the flags say.

    Raises:
      InputError: they do not fit together.
    """
    return ProcessConfig(
        COORDINATOR.value,
        PROCESSES.value,
        PROCESS.value,
        start_timeout=START_TIMEOUT.value,
        silence_timeout=SILENCE_TIMEOUT.value,
    )
