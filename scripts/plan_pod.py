"""Says what a training run needs on a TPU pod and how fast it should go, without the pod.

    python scripts/plan_pod.py --config=configs/molm_700m_8b.py --topology=v5p:4x4x4
    [--search] [--json=FILE] [--config.mesh.fsdp=64 ...]
    python scripts/plan_pod.py --rates --config=... --topology=...

Compiles the step that scripts/train.py would run, for that topology, on this machine's CPU (with
libtpu: pip install 'modbrick[plan]'), and prints what each device holds, what the collectives move,
and the predicted time of a step with what bounds it. Choices of kernels that the config leaves open
are those of a TPU. A preset may have a machine for the topology: configs/NAME.py:v5e:16x16.

What kernels take is read from modbrick/planning/rates.json by their shapes. --rates measures what
the config needs and is missing there: minutes for each shape, written one by one, so that it may
be stopped and started again. Delete a rate to measure it again.

--search ranks meshes, rematerialisation and microbatches by a fast model and compiles only the
best, until --compile of them fit. Exit status 0: it fits; 2: bad input, or it does not fit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError
from modbrick.planning.advice import advice, verdict
from modbrick.planning.measuring import measure_missing_rates
from modbrick.planning.rates import KNOWN_RATES
from modbrick.planning.search import compiled, search
from modbrick.planning.table import describe, describe_candidates, watched_plan
from modbrick.planning.topology import find_topology
from modbrick.schema import json_text
from modbrick.training.adaptation import with_model
from modbrick.training.run_config import RunConfig

CONFIG = DEFINE_config("config", RunConfig, complete=with_model)
TOPOLOGY = flags.DEFINE_string("topology", None, "Generation and chips, such as v5p:4x4x4.")
SEARCH = flags.DEFINE_bool("search", False, "Try meshes, rematerialisation and microbatches.")
COMPILE = flags.DEFINE_integer("compile", 2, "Compile until so many plans fit.", lower_bound=1)
MEASURE = flags.DEFINE_bool("rates", False, "Measure the kernels' rates that the config needs.")
JSON = flags.DEFINE_string("json", None, "File for the (best) plan as JSON.")


def main(argv: Sequence[str]) -> None:
    """Plans the run that the config describes."""
    del argv
    command_line.check_output(JSON)
    # Planning happens on the CPU, whatever else the machine has.
    jax.config.update("jax_platforms", "cpu")
    config = CONFIG.value
    if config is None or TOPOLOGY.value is None:
        raise InputError("name config and topology: --config=configs/NAME.py --topology=v5p:4x4x4")
    topology = find_topology(TOPOLOGY.value, config.mesh.slices)
    if MEASURE.value:
        measure_missing_rates(KNOWN_RATES, [(config, topology)])
        return
    console = Console(width=110, highlight=False)
    make = functools.partial(watched_plan, topology=topology)
    if SEARCH.value:
        candidates = search(config, topology)
        console.print(describe_candidates(candidates, topology))
        plans = compiled(candidates, topology, COMPILE.value, make, console.print)
    else:
        plans = [make(config)]
    best = min(plans, key=lambda plan: plan.step_seconds)
    for plan in [*(plan for plan in plans if plan is not best), best]:
        console.print(describe(plan))
    command_line.write_output(JSON, json_text(best.to_mapping(), indent=2))
    if not best.fits:
        console.print(advice(best))
        raise InputError(verdict(best))


if __name__ == "__main__":
    command_line.run(main)
