"""Measuring the kernels' rates that runs need and that are not kept yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.status import Status

from modbrick.planning.kernel_shapes import kernel_shapes
from modbrick.planning.plan import named
from modbrick.planning.rates import keep_rate, measure_rate, read_rates, shape_name, unmeasured
from modbrick.planning.topology import Topology
from modbrick.training.run_config import RunConfig


def measure_missing_rates(path: Path, runs: Iterable[tuple[RunConfig, Topology]]) -> None:
    """Measures what runs need and a file does not have yet, minutes for each; prints each.

    Each rate is written when it is there, so that this may be stopped and started again.

    Args:
      path: JSON file of the rates (`modbrick/planning/rates.json`).
      runs: configs and where they would run.

    Raises:
      RuntimeError: the compiler refuses a part, or takes too long.
    """
    rates = read_rates(path)
    wanted = [
        (topology.generation.name, part, shape)
        for config, topology in runs
        for part, shape in kernel_shapes(named(config)).items()
    ]
    missing = unmeasured(rates, wanted)
    for i, (generation, part, shape) in enumerate(missing):
        what = f"{i + 1} of {len(missing)}: {part} on {generation}, {shape_name(shape)}"
        with Status(what, console=Console(stderr=True)):
            rate = measure_rate(generation, part, shape)
        keep_rate(path, rates, generation, rate)
        print(f"{what}: forward {rate.forward:.1%}, backward {rate.backward:.1%}", flush=True)
    if not missing:
        print(f"all rates are in {path}")
