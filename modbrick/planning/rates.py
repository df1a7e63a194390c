"""Shares of the peak that our kernels reach, as their compiled schedules say.

`rates.json` holds, by generation and part of a layer, the useful operations per second of the
kernels over the peak of the device; `measure_rate` finds them from the compilers' schedules
(`pallas_kernels.compile_report`: the largest of bundles over clock, bytes over bandwidth, copies,
and operations over the peak). What kernels recompute, pad or mask is thus in the rate.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

import jax

from modbrick.errors import InputError
from modbrick.planning import rate_programs
from modbrick.planning.topology import GENERATIONS
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.tpu.report import TpuReport, tpu_reports

KNOWN_RATES = Path(str(resources.files("modbrick.planning") / "rates.json"))
"""The rates that this library knows."""

FURTHEST = 2.0
"""A rate holds for shapes of which no size is more than so many times larger or smaller."""

REMEDY = "scripts/plan_pod.py --rates with this --config and --topology measures it"

Wanted = tuple[str, str, dict[str, int]]
"""Generation, part and shape of a rate."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """Shares of the peak, in useful operations, of one part at one shape.

    Attributes:
      part: `feed_forward`, `projections` or `attention`.
      shape: what it was measured at.
      forward, backward: shares; a backward pass has twice the useful operations.
      measured: when, and with which versions of jax and libtpu.
    """

    part: str
    shape: dict[str, int]
    forward: float
    backward: float
    measured: dict[str, str]

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"rate {name} must be in (0, 1], got {getattr(self, name)}")


@functools.cache
def known_rates(generation: str) -> tuple[Rate, ...]:
    """Returns what was measured for a generation.

    Raises:
      InputError: nothing was.
    """
    rates = read_rates(KNOWN_RATES)
    if generation not in rates:
        raise InputError(
            f"the kernels' rates on {generation} are not measured: known are "
            f"{', '.join(sorted(rates))}; {REMEDY}"
        )
    return tuple(rates[generation])


def nearest_rate(generation: str, part: str, shape: Mapping[str, int]) -> Rate:
    """Returns the rate at the shape nearest to this one, by ratios of its sizes.

    Raises:
      InputError: none is measured for this part, or none is near: with every size within a factor
        of `FURTHEST`, and with a gate where this shape has one.
    """
    rates = [rate for rate in known_rates(generation) if rate.part == part]
    if not rates:
        raise InputError(f"the kernels' rate of {part} on {generation} is not measured: {REMEDY}")
    nearest = min(rates, key=lambda rate: _distance(rate.shape, shape))
    if not math.isfinite(_distance(nearest.shape, shape)):
        known = "; ".join(shape_name(rate.shape) for rate in rates)
        raise InputError(
            f"the kernels' rate of {part} on {generation} is not measured at {shape_name(shape)}, "
            f"nor near it (known: {known}): {REMEDY}"
        )
    return nearest


def shape_name(shape: Mapping[str, int]) -> str:
    """Returns a shape as text: `width 1024, hidden 2048, experts 32, top_k 2, gated 0`."""
    return ", ".join(f"{name} {size}" for name, size in shape.items())


def _distance(known: Mapping[str, int], shape: Mapping[str, int]) -> float:
    """Returns the sum of the logarithms of the ratios of sizes; infinite if not comparable."""
    if set(known) != set(shape) or known.get("gated") != shape.get("gated"):
        return math.inf
    ratios = [abs(math.log(size / known[name])) for name, size in shape.items() if name != "gated"]
    return math.inf if max(ratios) > math.log(FURTHEST) + 1e-9 else sum(ratios)


def unmeasured(rates: Mapping[str, list[Rate]], wanted: Iterable[Wanted]) -> list[Wanted]:
    """Returns which of the wanted generations, parts and shapes have no rate yet, once each.

    First those without a rate near them, which no plan can do without.
    """
    far: list[Wanted] = []
    near: list[Wanted] = []
    for generation, part, shape in wanted:
        known = [rate.shape for rate in rates.get(generation, []) if rate.part == part]
        asked = [s for name, p, s in far + near if (name, p) == (generation, part)]
        if shape in known + asked:
            continue
        has_near = any(math.isfinite(_distance(other, shape)) for other in known + asked)
        (near if has_near else far).append((generation, part, shape))
    return far + near


def read_rates(path: Path) -> dict[str, list[Rate]]:
    """Returns the kept rates by generation."""
    data = json.loads(path.read_text())
    return {
        name: [Rate(**rate) for rate in of_generation]
        for name, of_generation in data["generations"].items()
    }


def keep_rate(path: Path, rates: dict[str, list[Rate]], generation: str, rate: Rate) -> None:
    """Adds a rate and writes all of them."""
    rates.setdefault(generation, []).append(rate)
    data = {name: [dataclasses.asdict(r) for r in rates[name]] for name in rates}
    path.write_text(json.dumps({"generations": data}, indent=1) + "\n")


def measure_rate(
    generation: str, part: str, shape: dict[str, int], timeout: float = 1800.0
) -> Rate:
    """Compiles a part at a shape, and returns its rate from the kernels' schedules.

    Raises:
      RuntimeError: the compiler refuses the part, or takes too long.
    """
    program = ProgramReference(f"{rate_programs.__name__}:{part}", shape)
    [report] = tpu_reports(generation, [program], timeout=timeout)
    if not isinstance(report, TpuReport):
        raise RuntimeError(f"{part} {shape} on {generation}: {report}")
    return _rate(generation, part, shape, report)


def _rate(generation: str, part: str, shape: dict[str, int], report: TpuReport) -> Rate:
    seconds = {"forward": 0.0, "backward": 0.0}
    for kernel in report.kernels:
        backward = kernel.name.startswith("transpose") or any(
            word in kernel.name for word in ("gradient", "backward")
        )
        seconds["backward" if backward else "forward"] += kernel.predicted_seconds * kernel.calls
    flops = rate_programs.useful_flops(part, shape)
    peak = GENERATIONS[generation].peak_flops
    return Rate(
        part,
        shape,
        forward=flops / (seconds["forward"] * peak),
        backward=2 * flops / (seconds["backward"] * peak),
        measured={
            "date": datetime.date.today().isoformat(),
            "jax": jax.__version__,
            "libtpu": importlib.metadata.version("libtpu"),
        },
    )
