"""Plans every preset on the topologies it is laid out for, and writes what was found into the docs.

    python -m tools.plan_presets [--rates]

Takes hours on two cores, and goes on where it was stopped: plans are kept one by one in
docs/figures/plans.json (delete one to plan it again), and go from there into the table of
docs/pods.md and the docstrings of the presets. --rates measures the kernels' rates that the presets
need and that modbrick/planning/rates.json does not have, minutes for each, and plans nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from modbrick import command_line
from modbrick.planning.measuring import measure_missing_rates
from modbrick.planning.plan import make_plan
from modbrick.planning.rates import KNOWN_RATES
from modbrick.planning.topology import find_topology
from tools.docstrings import write_presets
from tools.presets import (
    PRESETS,
    TOPOLOGIES,
    keep_plan,
    missing,
    preset,
    read_plans,
    write_table,
)

RATES = flags.DEFINE_bool("rates", False, "Measure the kernels' rates that the presets need.")

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, PLANS, PAGE = ROOT / "configs", ROOT / "docs/figures/plans.json", ROOT / "docs/pods.md"


def main(argv: Sequence[str]) -> int:
    """Plans the presets that have no kept plan yet."""
    del argv
    # Planning happens on the CPU, whatever else the machine has.
    jax.config.update("jax_platforms", "cpu")
    if RATES.value:
        laid_out = itertools.product(TOPOLOGIES, PRESETS)
        runs = [(preset(CONFIGS, name, on), find_topology(on)) for on, name in laid_out]
        measure_missing_rates(KNOWN_RATES, runs)
        return 0
    plans = read_plans(PLANS)
    for name, config, topology in missing(plans, CONFIGS):
        plan = make_plan(config, topology)
        keep_plan(PLANS, plans, name, plan.to_mapping())
        write_docs(plans)
        utilisation = f"{plan.time.utilisation:.0%}" if plan.time else "does not fit"
        print(f"{name} {topology.name}: {utilisation}", flush=True)
    write_docs(plans)
    return 0


def write_docs(plans: dict[str, Any]) -> None:
    """Writes the kept plans into the guide and into the presets' docstrings."""
    write_table(PAGE, plans)
    write_presets(CONFIGS, plans["plans"])


if __name__ == "__main__":
    command_line.run(main)
