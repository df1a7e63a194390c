"""Says what a training run needs on a TPU pod and how fast it should go, without the pod.

    python scripts/plan_pod.py --config=configs/molm_700m_8b.py --topology=v5p:4x4x4
    [--search] [--json=FILE] [--config.mesh.fsdp=64 ...]
    python scripts/plan_pod.py --rates --config=... --topology=...

Compiles the step that scripts/train.py would run, for that topology, on this machine's CPU (libtpu
is needed: pip install 'modbrick[plan]'), and prints what each device holds, what the collectives
move, and the predicted time of a step with what bounds it. Choices of kernels that the config
leaves open are those of a TPU. A preset may have a machine for the topology:
--config=configs/molm_700m_8b.py:v5e:16x16.

What kernels take is read from modbrick/planning/rates.json by their shapes. --rates measures what
the config needs and is missing there: minutes for each shape, written one by one, so that it may
be stopped and started again. Delete a rate to measure it again.

--search ranks meshes, rematerialisation policies and microbatches by a fast model and compiles only
the best, until --compile of them fit. Exit status 0: it fits; 2: bad input, or it does not fit, and
the output says what would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from rich.console import Console
from rich.status import Status

from modbrick import command_line
from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError
from modbrick.planning.advice import advice, verdict
from modbrick.planning.measuring import measure_missing_rates
from modbrick.planning.plan import Plan, make_plan
from modbrick.planning.rates import FILE
from modbrick.planning.search import compiled, search
from modbrick.planning.table import describe, describe_candidates
from modbrick.planning.topology import Topology, find_topology
from modbrick.training.run_config import RunConfig

CONFIG = DEFINE_config("config", RunConfig)
TOPOLOGY = flags.DEFINE_string("topology", None, "Generation and chips, such as v5p:4x4x4.")
SEARCH = flags.DEFINE_bool("search", False, "Try meshes, rematerialisation and microbatches.")
COMPILE = flags.DEFINE_integer(
    "compile", 2, "Compile the found plans until so many fit.", lower_bound=1
)
RATES = flags.DEFINE_bool("rates", False, "Measure the kernels' rates that the config needs.")
JSON = flags.DEFINE_string("json", None, "File for the (best) plan as JSON.")

KEPT_RATES = Path(__file__).resolve().parents[1] / "modbrick/planning" / FILE
SHOWN = 10  # plans that --search lists


def main(argv: Sequence[str]) -> int:
    """Plans the run that the config describes."""
    del argv
    command_line.check_output(JSON)
    # Planning happens on the CPU, whatever else the machine has.
    jax.config.update("jax_platforms", "cpu")
    config = CONFIG.value
    if config is None or TOPOLOGY.value is None:
        raise InputError(
            "name a config and a topology: --config=configs/NAME.py --topology=v5p:4x4x4"
        )
    topology = find_topology(TOPOLOGY.value, config.mesh.slices)
    if RATES.value:
        measure_missing_rates(KEPT_RATES, [(config, topology)])
        return 0
    console = Console(width=110)
    if SEARCH.value:
        candidates = search(config, topology)
        console.print(describe_candidates(candidates[:SHOWN], topology))
        plans = compiled(
            candidates,
            topology,
            COMPILE.value,
            lambda choice: watched_plan(choice, topology),
            lambda line: console.print(line, highlight=False),
        )
    else:
        plans = [watched_plan(config, topology)]
    best = min(plans, key=lambda plan: plan.time.step_seconds if plan.time else math.inf)
    for plan in plans:
        if plan is not best:
            console.print(describe(plan))
    console.print(describe(best))
    if not best.fits:
        console.print(advice(best), highlight=False)
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(best.to_mapping(), indent=2) + "\n")
    if not best.fits:
        raise InputError(verdict(best))
    return 0


def watched_plan(config: RunConfig, topology: Topology) -> Plan:
    """Makes a plan, and reports progress on standard error."""
    with Status("planning", console=Console(stderr=True)) as status:
        return make_plan(
            config,
            topology,
            progress=lambda stage, seconds: status.update(
                f"{stage} for {topology.devices} devices, {seconds:.0f} s"
            ),
        )


if __name__ == "__main__":
    command_line.run(main)
