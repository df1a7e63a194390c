"""Pretrains or fine-tunes a model.

    python scripts/train.py --config=configs/NAME.py --workdir=DIR [--config.training.steps=9 ...]

The working directory receives checkpoints, metrics and the config. Started again on the same
directory, a run continues from its last complete checkpoint, with the parameters that it would have
had without the interruption. SIGTERM or Ctrl-C: the step in hand is finished and saved; exit status
75 says "start me again".
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from modbrick import command_line
from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError
from modbrick.hardware import enable_compilation_cache
from modbrick.parallel import process_flags
from modbrick.parallel.processes import ending_by_itself, say, start_processes
from modbrick.training.adaptation import with_model
from modbrick.training.observe.observer import FINISHED
from modbrick.training.observe.profile import ProfiledSteps
from modbrick.training.preemption import EXIT_PREEMPTED
from modbrick.training.run_config import RunConfig
from modbrick.training.running import run_task
from modbrick.training.tasks.pretraining import Pretraining

CONFIG = DEFINE_config("config", RunConfig, complete=with_model)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, local or remote.")
ALLOW_CHANGE = flags.DEFINE_list("allow_change", [], "What may differ: names such as optimizer.")
BASE = flags.DEFINE_enum("allow_base", "same", ["same", "any"], "Weights initial_bricks are for.")
PROFILE_STEPS = flags.DEFINE_string("profile_steps", None, "FIRST:LAST, to WORKDIR/profile.")
flags.adopt_module_key_flags(process_flags)


@ending_by_itself()
def main(argv: Sequence[str]) -> int:
    """Trains the model that the config describes."""
    del argv
    config, workdir = CONFIG.value, WORKDIR.value
    if config is None or not workdir:
        raise InputError("name a config and a directory: --config=configs/NAME.py --workdir=DIR")
    enable_compilation_cache()
    profiled = ProfiledSteps.parse(PROFILE_STEPS.value, config.training.steps)

    start_processes(process_flags.process_config())  # they find each other
    reason = run_task(
        config,
        Pretraining(config),
        workdir,
        allow_change=ALLOW_CHANGE.value,
        allow_base=BASE.value,
        profiled=profiled,
    )
    if reason != FINISHED:
        return EXIT_PREEMPTED
    say(f"finished {config.training.steps} steps; everything is in {workdir}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
