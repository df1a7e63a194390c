"""Says what a training run needs on a TPU pod and how fast it should go, without the pod.

    python scripts/plan_pod.py --config=configs/molm_700m_8b.py --topology=v5p:4x4x4
    [--search] [--json=FILE] [--config.mesh.fsdp=64 ...]
    python scripts/plan_pod.py --presets
    python scripts/plan_pod.py --rates [--config=... --topology=...]

Compiles the step that scripts/train.py would run, for that topology, on this machine's CPU (libtpu
is needed: pip install 'modbrick[plan]'), and prints what each device holds, what the collectives
move, and the predicted time of a step with what bounds it. Choices of kernels that the config
leaves open are those of a TPU. A preset may have a layout for the topology:
--config=configs/molm_700m_8b.py:v5e:16x16.

What kernels take is read from modbrick/planning/rates.json by their shapes. --rates measures what
is missing there, of all presets or of one config: minutes for each shape, written one by one, so
that it may be stopped and started again. Delete a rate to measure it again.

--search ranks meshes, rematerialisation policies and microbatches by a fast model and compiles only
the best, until --compile of them fit. Exit status 0: it fits; 2: bad input, or it does not fit, and
the output says what would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.status import Status

from modbrick import command_line
from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError
from modbrick.planning.advice import advice, verdict
from modbrick.planning.docstrings import write_presets
from modbrick.planning.kernel_shapes import kernel_shapes
from modbrick.planning.plan import Plan, make_plan, named
from modbrick.planning.presets import (
    PRESETS as PRESET_NAMES,
)
from modbrick.planning.presets import (
    TOPOLOGIES,
    keep_plan,
    missing,
    preset,
    read_plans,
    write_table,
)
from modbrick.planning.rates import (
    FILE,
    keep_rate,
    measure_rate,
    read_rates,
    shape_name,
    unmeasured,
)
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
PRESETS = flags.DEFINE_bool(
    "presets", False, "Plan all presets into docs/figures/plans.json; delete one to plan it again."
)
RATES = flags.DEFINE_bool(
    "rates", False, "Measure the kernels' rates that the config, or else the presets, need."
)
JSON = flags.DEFINE_string("json", None, "File for the (best) plan as JSON.")

ROOT = Path(__file__).resolve().parents[1]
PLANS, PAGE = ROOT / "docs/figures/plans.json", ROOT / "docs/pods.md"
KEPT_RATES = ROOT / "modbrick/planning" / FILE
SHOWN = 10  # plans that --search lists


def main(argv: Sequence[str]) -> int:
    """Plans the run that the config describes."""
    del argv
    command_line.check_output(JSON)
    # Planning happens on the CPU, whatever else the machine has.
    jax.config.update("jax_platforms", "cpu")
    if PRESETS.value:
        return plan_presets()
    config = CONFIG.value
    if RATES.value and config is None:
        return keep_rates(
            (preset(ROOT / "configs", name, topology), find_topology(topology))
            for topology in TOPOLOGIES
            for name in PRESET_NAMES
        )
    if config is None or TOPOLOGY.value is None:
        raise InputError(
            "name a config and a topology: --config=configs/NAME.py --topology=v5p:4x4x4"
        )
    topology = find_topology(TOPOLOGY.value, config.mesh.slices)
    if RATES.value:
        return keep_rates([(config, topology)])
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


def plan_presets() -> int:
    """Plans every preset that has no kept plan yet, and writes JSON and table after each."""
    plans = read_plans(PLANS)
    for name, config, topology in missing(plans, ROOT / "configs"):
        plan = watched_plan(config, topology)
        keep_plan(PLANS, plans, name, plan.to_mapping())
        tell_plans(plans)
        utilisation = f"{plan.time.utilisation:.0%}" if plan.time else "does not fit"
        print(f"{name} {topology.name}: {utilisation}", flush=True)
    tell_plans(plans)
    return 0


def keep_rates(runs: Iterable[tuple[RunConfig, Topology]]) -> int:
    """Measures the rates that these runs need and that are not kept yet, and writes each."""
    rates = read_rates(KEPT_RATES)
    wanted = [
        (topology.generation.name, part, shape)
        for config, topology in runs
        for part, shape in kernel_shapes(named(config)).items()
    ]
    asked = unmeasured(rates, wanted)
    for i, (generation, part, shape) in enumerate(asked):
        what = f"{i + 1} of {len(asked)}: {part} on {generation}, {shape_name(shape)}"
        with Status(what, console=Console(stderr=True)):
            rate = measure_rate(generation, part, shape)
        keep_rate(KEPT_RATES, rates, generation, rate)
        print(f"{what}: forward {rate.forward:.1%}, backward {rate.backward:.1%}", flush=True)
    if not asked:
        print(f"all rates are in {KEPT_RATES}")
    return 0


def tell_plans(plans: dict[str, Any]) -> None:
    """Writes the kept plans into the guide and into the presets' docstrings."""
    write_table(PAGE, plans)
    write_presets(ROOT / "configs", plans["plans"])


def watched_plan(config: RunConfig, topology: Topology) -> Plan:
    """Makes a plan, and tells on standard error how far it is."""
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
